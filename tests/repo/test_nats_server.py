"""The nats-server that tests get is a real one, clean at the start, and never left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import nats
import psutil
import pytest

from gurney.testing.nats import NatsServer

OWNER = """
import sys, time
from pathlib import Path
from gurney.testing.nats import NatsServer
print(NatsServer(Path(sys.argv[1])).start().pid, flush=True)
time.sleep(60)
"""


async def streams(server: NatsServer) -> list[str]:
    """Return the names of the streams that a server has."""
    connection = await nats.connect(server.url)
    try:
        return [str(stream.config.name) for stream in await connection.jetstream().streams_info()]
    finally:
        await connection.close()


async def add_stream(server: NatsServer, name: str) -> None:
    """Declare one stream."""
    connection = await nats.connect(server.url)
    try:
        await connection.jetstream().add_stream(name=name, subjects=[f"{name}.>"])
    finally:
        await connection.close()


@pytest.mark.parametrize("turn", [1, 2])
async def test_shared_server_is_clean(nats_server: NatsServer, turn: int) -> None:
    """A test finds no stream of the test before it on the shared server."""
    assert await streams(nats_server) == []
    await add_stream(nats_server, f"LEFT_{turn}")


async def test_own_server_keeps_port_and_streams(own_nats_server: NatsServer) -> None:
    """A server that was killed comes back at the same address with the same streams, and with none once wiped."""
    await add_stream(own_nats_server, "KEPT")
    url = own_nats_server.url
    own_nats_server.kill()
    assert own_nats_server.start().url == url
    assert await streams(own_nats_server) == ["KEPT"]
    own_nats_server.stop()
    own_nats_server.wipe()
    own_nats_server.start()
    assert await streams(own_nats_server) == []


async def test_paused_server_is_silent(own_nats_server: NatsServer) -> None:
    """A paused server answers nothing, a resumed one goes on, and a paused one can be stopped."""
    connection = await nats.connect(own_nats_server.url)
    js = connection.jetstream(timeout=0.5)
    own_nats_server.pause()
    with pytest.raises(TimeoutError):
        await js.account_info()
    own_nats_server.resume()
    await js.account_info()
    await connection.close()
    pid = own_nats_server.pid
    assert pid is not None
    own_nats_server.pause()
    own_nats_server.stop()
    assert not psutil.pid_exists(pid)


def test_server_ends_with_its_owner(tmp_path: Path) -> None:
    """When the process that started a server is killed by SIGKILL, the server ends as well."""
    with subprocess.Popen([sys.executable, "-c", OWNER, tmp_path], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        server = psutil.Process(int(owner.stdout.readline()))
        os.kill(owner.pid, signal.SIGKILL)
    server.wait(10)


def test_server_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that fails tells what the server wrote, and leaves no process."""
    monkeypatch.setattr("gurney.testing.nats.READY_WITHIN_S", 0.5)
    before = psutil.Process().children()
    server = NatsServer(tmp_path, settings="nonsense: [")
    with pytest.raises(TimeoutError, match="Parse error"):
        server.start()
    assert not server.runs
    assert psutil.Process().children() == before
