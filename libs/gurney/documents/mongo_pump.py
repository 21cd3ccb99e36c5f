"""Gathers what concurrent callers want into few questions: writes into rounds, look-ups into one query."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from gurney.errors import GurneyError

T = TypeVar("T")

#: Rounds under way: while one is synced to disk, the next is on its way.
FLIGHTS = 2
ROUND_WRITES = 1000
ROUND_BYTES = 12 * 1024**2


class Statement(Protocol):
    """A write on its way."""

    @property
    def id(self) -> str: ...

    @property
    def size(self) -> int: ...


S = TypeVar("S", bound=Statement)


@dataclass(eq=False)
class _Call(Generic[S]):
    """The writes of one caller, in order; a part of them may be under way."""

    statements: Sequence[S]
    done: "asyncio.Future[list[GurneyError | None]]"
    results: list[GurneyError | None] = field(default_factory=list)
    #: How many are in rounds or done.
    taken: int = 0

    @property
    def waits(self) -> bool:
        return len(self.results) == self.taken < len(self.statements)


class Pump(Generic[S]):
    """Sends rounds, at most two at a time; in a round no document is written twice, so its writes have no order."""

    def __init__(self, send: Callable[[list[S]], Awaitable[list[GurneyError | None]]]) -> None:
        self._send = send
        self._calls: deque[_Call[S]] = deque()
        self._flights: set[asyncio.Task[None]] = set()

    async def write(self, statements: Sequence[S]) -> list[GurneyError | None]:
        """Send these in order and return what became of each."""
        if not statements:
            return []
        loop = asyncio.get_running_loop()
        call = _Call(statements, loop.create_future())
        self._calls.append(call)
        loop.call_soon(self._start)  # with all that others write in this turn of the loop
        return await call.done

    async def drained(self) -> None:
        """Return when nothing is under way."""
        while self._flights:
            await asyncio.wait(self._flights)

    def _start(self) -> None:
        while len(self._flights) < FLIGHTS and (parts := self._round()):
            flight = asyncio.get_running_loop().create_task(self._fly(parts))
            self._flights.add(flight)
            flight.add_done_callback(self._landed)

    def _landed(self, flight: "asyncio.Task[None]") -> None:
        self._flights.discard(flight)
        self._start()

    def _round(self) -> list[tuple[_Call[S], Sequence[S]]]:
        parts: list[tuple[_Call[S], Sequence[S]]] = []
        ids: set[str] = set()
        count = size = 0
        for call in tuple(self._calls):
            if not call.waits:
                continue
            begun = call.taken
            for statement in call.statements[begun:]:
                if statement.id in ids or count >= ROUND_WRITES or (count and size + statement.size > ROUND_BYTES):
                    break
                ids.add(statement.id)
                count, size = count + 1, size + statement.size
                call.taken += 1
            if call.taken > begun:
                parts.append((call, call.statements[begun : call.taken]))
            if call.taken < len(call.statements):  # whatever comes after waits for its turn
                break
            self._calls.remove(call)
        return parts

    async def _fly(self, parts: Sequence[tuple[_Call[S], Sequence[S]]]) -> None:
        try:
            results = iter(await self._send([statement for _, part in parts for statement in part]))
        except Exception as error:
            for call, _ in parts:
                if call in self._calls:
                    self._calls.remove(call)
                if not call.done.done():
                    call.done.set_exception(error)
            return
        for call, part in parts:
            call.results += [next(results) for _ in part]
            if len(call.results) == len(call.statements) and not call.done.done():
                call.done.set_result(call.results)


class Lookups(Generic[T]):
    """Merges look-ups by key: those that come while others are under way go together."""

    def __init__(self, fetch: Callable[[list[str]], Awaitable[Mapping[str, T]]]) -> None:
        self._fetch = fetch
        self._waiting: dict[str, asyncio.Future[T | None]] = {}
        self._flights: set[asyncio.Task[None]] = set()

    async def ask(self, key: str) -> T | None:
        """Return what is found by a query that begins after this call."""
        waiting = self._waiting.get(key)
        if waiting is None:
            loop = asyncio.get_running_loop()
            waiting = self._waiting[key] = loop.create_future()
            loop.call_soon(self._start)
        return await asyncio.shield(waiting)  # others may wait for the same

    def _start(self) -> None:
        if self._waiting and len(self._flights) < FLIGHTS:
            asked, self._waiting = self._waiting, {}
            flight = asyncio.get_running_loop().create_task(self._fly(asked))
            self._flights.add(flight)
            flight.add_done_callback(self._landed)

    def _landed(self, flight: "asyncio.Task[None]") -> None:
        self._flights.discard(flight)
        self._start()

    async def _fly(self, asked: Mapping[str, "asyncio.Future[T | None]"]) -> None:
        try:
            found = await self._fetch(list(asked))
        except Exception as error:
            for waiting in asked.values():
                waiting.set_exception(error)
                waiting.exception()  # whoever asked may have gone
        else:
            for key, waiting in asked.items():
                waiting.set_result(found.get(key))
