"""The server that is killed again and again, as its clients know it: now there, now not, always elsewhere."""

import asyncio
import os
import shutil
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from gurney.testing.embedded import EmbeddedProcess
from tests.e2e.work import nats_pid

#: More than any answer may take.
ANSWERS_WITHIN_S = 60
_UNAVAILABLE = 503


class LostError(Exception):
    """There is no answer: whether the request was carried out is not known."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    json: Any


class Insistent:
    """Clients who go on asking whatever happens; `up` is set while there is somebody to ask."""

    #: What was asked for may still be done after no answer came: who was to do it rests, and goes on later.
    is_late = False

    def __init__(self) -> None:
        self.up = asyncio.Event()
        self._session: aiohttp.ClientSession | None = None

    def meet(self, url: str, token: str) -> None:
        """Begin to ask the server at this address."""
        self._session = aiohttp.ClientSession(
            url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=aiohttp.ClientTimeout(total=ANSWERS_WITHIN_S),
            connector=aiohttp.TCPConnector(limit=0),
        )
        self.up.set()

    async def leave(self) -> None:
        """Drop the clients' connections."""
        if self._session:
            await self._session.close()

    async def ask(self, method: str, path: str, **options: Any) -> Answer:
        """Send a request; raises `LostError` where no answer comes, or one that says to try again."""
        assert self._session
        try:
            async with self._session.request(method, path, **options) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError, RuntimeError) as error:
            raise LostError(repr(error)) from error
        if response.status == _UNAVAILABLE:
            await asyncio.sleep(0.05)
            raise LostError(body.decode())
        json = await response.json() if response.content_type == "application/json" else None
        return Answer(response.status, body, json)

    async def insist(self, method: str, path: str, **options: Any) -> Answer:
        """Send a request again, to one server after the other, until one answers."""
        while True:
            await self.up.wait()
            with suppress(LostError):
                return await self.ask(method, path, **options)
            await asyncio.sleep(0.01)


class MortalServer(Insistent):
    """One data folder; `up` is set while a server serves it."""

    def __init__(self, process: EmbeddedProcess) -> None:
        super().__init__()
        self.process = process
        self.data = process.data

    async def start(self) -> None:
        await asyncio.to_thread(self.process.start)
        self.meet(self.process.url, self.process.token)

    async def start_and_kill(self, after_s: float) -> bool:
        """Kill a server while it starts; tells whether it was not ready yet."""
        starting = asyncio.ensure_future(asyncio.to_thread(self.process.start))
        await asyncio.sleep(after_s)
        early = not starting.done()
        await asyncio.to_thread(self.process.kill)
        with suppress(RuntimeError):
            await starting
        await asyncio.to_thread(self.process.kill)
        return early

    def strike(self) -> None:
        """Kill the server in this very moment."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.up.clear()

    async def bury(self) -> None:
        """Wait until a killed server is gone."""
        self.up.clear()
        await asyncio.to_thread(self.process.kill)

    async def stop(self) -> int:
        self.up.clear()
        await self.leave()
        return await asyncio.to_thread(self.process.stop)

    async def wipe(self) -> None:
        """Remove the JetStream folder, its nats-server with it."""
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(nats_pid(self.data), signal.SIGKILL)
        jetstream = self.data / "nats" / "jetstream"
        async with asyncio.timeout(ANSWERS_WITHIN_S):
            while jetstream.exists():
                await asyncio.to_thread(shutil.rmtree, jetstream, ignore_errors=True)

    def strike_supervisor(self) -> None:
        """Kill the process that watches the runs."""
        _kill(supervisors(self.data))

    def strike_rest(self) -> None:
        """Kill whatever the server left."""
        _kill([*nats_servers(self.data), *supervisors(self.data)])


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes_with(*words: str) -> list[int]:
    """Return the processes whose command line has all of these words."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes().split(b"\0")
            if all(word.encode() in command for word in words):
                found.append(int(folder.name))
    return found


def nats_servers(data: Path) -> list[int]:
    """Return the nats-servers of a data folder."""
    return processes_with(str(data / "nats" / "nats-server.conf"))


def supervisors(data: Path) -> list[int]:
    """Return the processes that watch the runs of a data folder."""
    return processes_with(str(data / "runtime"))
