"""Until when each run may live, for the watchdog and for us. What blocks runs on a thread, one after the other."""

import asyncio
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from gurney import clock
from gurney.errors import Unavailable
from gurney.runtime.docker import watchdog
from gurney.runtime.docker.daemon import Daemon

_SPAWN_S = 10.0
_AGAIN_S = 0.02


class Leases:
    """The leases of the runs of one data folder."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self._daemon = daemon
        self._folder = folder
        self._until: dict[str, float] = {}
        self._writing = asyncio.Lock()

    def open(self, live: Collection[str]) -> dict[str, float]:
        """Return what was written before of runs that may live. Blocks."""
        path = self._folder / "leases.json"
        try:
            self._until = {
                run_id: float(until) for run_id, until in json.loads(path.read_bytes()).items() if run_id in live
            }
        except (OSError, ValueError):
            self._until = {}
        return dict(self._until)

    async def give(self, until: dict[str, float]) -> None:
        """Make it safe that runs live until then; what lapses is killed from now on whatever becomes of us.

        Raises `Unavailable`, on a full disk for example.
        """
        self._until |= until
        await self._write()

    async def take(self, run_id: str) -> None:
        """Watch a run no longer: it has ended, so that it does no harm where that cannot be told now."""
        if self._until.pop(run_id, None) is not None:
            with suppress(Unavailable):
                await self._write()

    async def _write(self) -> None:
        async with self._writing:
            content = json.dumps(self._until).encode()
            await self._daemon.aside(lambda: self._keep(content))

    def _keep(self, content: bytes) -> None:
        draft = self._folder / "leases.tmp"
        try:
            draft.write_bytes(content)
            draft.replace(self._folder / "leases.json")
        except OSError as error:
            raise Unavailable(f"The leases cannot be kept: {error.strerror}") from error
        deadline = clock.monotonic() + _SPAWN_S
        while not self._poke() and not self._spawn():  # one is just coming or going
            if clock.monotonic() > deadline:
                raise Unavailable("The watchdog of the leases does not answer")
            time.sleep(_AGAIN_S)

    def _poke(self) -> bool:
        """Tell the watchdog; False where there is none."""
        try:
            poke = os.open(self._folder / "poke", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENXIO}:
                return False
            raise
        try:
            os.write(poke, b".")
        except BlockingIOError:
            pass  # it has been told often enough
        finally:
            os.close(poke)
        return True

    def _spawn(self) -> bool:
        """Start the watchdog; False where there is one."""
        command = [sys.executable, "-I", "-S", watchdog.__file__, str(self._folder), self._daemon.url]
        nothing = subprocess.DEVNULL
        try:
            done = subprocess.run(
                command, stdin=nothing, stdout=nothing, stderr=nothing, env={}, timeout=_SPAWN_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise Unavailable("The watchdog of the leases did not start in time") from error
        if done.returncode not in {0, watchdog.TAKEN}:
            raise Unavailable(f"The watchdog of the leases did not start: exit code {done.returncode}")
        return done.returncode == 0
