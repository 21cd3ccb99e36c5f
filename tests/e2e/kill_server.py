"""The server that is killed again and again, as its clients know it: now there, now not, always elsewhere."""

import asyncio
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

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

    #: A change may still be made for a moment after no answer came: only the one who answers was killed.
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


class Mortal(Insistent, ABC):
    """All of Gurney at one place: it dies at once, and comes back to what it kept."""

    @property
    @abstractmethod
    def hosts(self) -> list[Path]:
        """The data folder of each agent."""

    @property
    @abstractmethod
    def logs(self) -> str:
        """What it has logged, start after start."""

    @property
    @abstractmethod
    def nats(self) -> dict[str, Any]:
        """How one who may see everything connects to its nats-server while that runs."""

    @abstractmethod
    def strike(self) -> None:
        """Kill all of it in this very moment."""

    @abstractmethod
    async def wipe(self) -> None:
        """Let JetStream lose all that it stored, while nothing else runs."""

    @abstractmethod
    async def jobs(self) -> list[tuple[str, str, str | None]]:
        """Return (id, state, state of its placement) of all jobs, as the dead left them."""

    @abstractmethod
    async def unsettled(self) -> list[str]:
        """Return what the documents still have to do, and what lies about beside them."""

    @abstractmethod
    async def twice(self) -> list[str]:
        """Return what runs of which there may be only one."""

    @abstractmethod
    async def left(self) -> list[str]:
        """Return what is left after a stop and should not be."""

    @abstractmethod
    def _start(self) -> tuple[str, str]:
        """Return URL and token once it serves; raises `RuntimeError` or `TimeoutError` where it is killed before."""

    @abstractmethod
    def _kill(self) -> None:
        """Kill what runs, and return when it is gone."""

    @abstractmethod
    def _stop(self) -> int:
        """Stop it in order; returns the exit code."""

    async def start(self) -> None:
        self.meet(*await asyncio.to_thread(self._start))

    async def start_and_kill(self, after_s: float) -> bool:
        """Kill it while it starts; tells whether it did not serve yet."""
        starting = asyncio.ensure_future(asyncio.to_thread(self._start))
        await asyncio.sleep(after_s)
        early = not starting.done()
        await asyncio.to_thread(self._kill)
        with suppress(RuntimeError, TimeoutError):
            await starting
        await asyncio.to_thread(self._kill)
        return early

    async def bury(self) -> None:
        """Wait until what was killed is gone."""
        self.up.clear()
        await asyncio.to_thread(self._kill)

    async def stop(self) -> int:
        self.up.clear()
        await self.leave()
        return await asyncio.to_thread(self._stop)

    def strike_supervisors(self) -> None:
        """Kill the processes that watch the runs."""
        kill(pid for host in self.hosts for pid in supervisors(host))

    async def finish(self) -> None:
        """End whatever is left."""
        await self.stop()
        self.strike_supervisors()


def kill(pids: Iterable[int]) -> None:
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


def supervisors(host: Path) -> list[int]:
    """Return the processes that watch the runs of a host's data folder."""
    return processes_with(str(host / "runtime"))
