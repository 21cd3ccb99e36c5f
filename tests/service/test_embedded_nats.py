"""The nats-server that is the child of the embedded server, where it does not do what it should."""

import asyncio
import subprocess
from pathlib import Path

import pytest

from gurney.clock import monotonic
from gurney.errors import NatsUnavailable
from services.embedded import nats_server
from services.embedded.nats_server import NatsServer


class Dying(NatsServer):
    """A child that ends as soon as it was started."""

    def __init__(self, folder: Path, faults: list[Exception]) -> None:
        super().__init__(folder)
        self.starts: list[float] = []
        self._faults = faults

    async def _start(self) -> None:
        self.starts.append(monotonic())
        self._process = await asyncio.to_thread(subprocess.Popen, ["true"])
        if len(self.starts) > 1 and self._faults:
            raise self._faults.pop()


async def test_a_child_that_ends_again_and_again_is_started_more_and_more_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pause is twice as long as the one before, and no fault of a start, a full disk's neither, ends the watch."""
    monkeypatch.setattr(nats_server, "FIRST_PAUSE_S", 0.05)
    child = Dying(tmp_path / "nats", [NatsUnavailable("x"), OSError(28, "No space left on device")])
    async with asyncio.timeout(30), child:
        while len(child.starts) < 5:
            await asyncio.sleep(0.01)
    pauses = [after - before for before, after in zip(child.starts, child.starts[1:], strict=False)]
    assert all(pause >= least for pause, least in zip(pauses, (0.05, 0.1, 0.2, 0.4), strict=False))


async def test_a_child_that_does_not_answer_is_told_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start fails in one line that names the log, and leaves no process."""
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 60\n")
    silent.chmod(0o755)
    monkeypatch.setattr(nats_server, "_binary", lambda: str(silent))
    monkeypatch.setattr(nats_server, "STARTS_WITHIN_S", 0.3)
    child = NatsServer(tmp_path / "nats")
    with pytest.raises(NatsUnavailable, match=r"did not answer within 0.3 s: see .*nats-server\.log"):
        async with child:
            pass
    assert child.pid is not None
    assert await asyncio.to_thread(nats_server.process_started, child.pid) is None
