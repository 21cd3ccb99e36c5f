"""Sends what running applications write, while they write it: `log.<node>.<run>`. For watching; the kept log is whole.

The size of each log is looked at five times a second, all in one hop to a thread. Who writes faster than a reader could
follow is not followed byte by byte: what lies too far back is left out, and the offsets show it.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from gurney.model.run import LogChunk
from gurney.subjects import LOG_CHUNK

PERIOD_S = 0.2
#: Bytes of one message.
CHUNK = 32 * 1024
#: Bytes of one run in one round.
ROUND = 256 * 1024
#: A reader that is further behind than this is taken to the end.
BEHIND = 1 << 20
#: How much of the end he gets then.
KEPT = 64 * 1024

_LONGEST_CHARACTER = 4
#: First byte from which on a character of UTF-8 has this many bytes; 0: within a character.
_LENGTHS = ((0xF0, 4), (0xE0, 3), (0xC0, 2), (0x80, 0), (0x00, 1))

Publish = Callable[[str, bytes], Awaitable[None]]


class _Tail:
    """How far one log was sent."""

    def __init__(self, path: Path, offset: int | None) -> None:
        self.path = path
        #: None: near the end that it has when it is first looked at.
        self.offset = offset
        self.lock = asyncio.Lock()


class LiveLog:
    """The logs of all runs of this node that are running."""

    def __init__(self, node: str, publish: Publish) -> None:
        self._node = node
        self._publish = publish
        self._tails: dict[str, _Tail] = {}
        self._some = asyncio.Event()

    def follow(self, run_id: str, path: Path, *, anew: bool) -> None:
        """Send what the run writes from now on; `anew`: from its beginning."""
        self._tails.setdefault(run_id, _Tail(path, 0 if anew else None))
        self._some.set()

    async def finish(self, run_id: str) -> None:
        """Send the rest of a run that has ended."""
        tail = self._tails.pop(run_id, None)
        if tail is None:
            return
        async with tail.lock:
            await self._send(run_id, await asyncio.to_thread(_read_new, tail, last=True))

    def drop(self, run_id: str) -> None:
        """Send nothing more of the run."""
        self._tails.pop(run_id, None)

    async def run(self) -> None:
        """Follow for ever."""
        while True:
            if not self._tails:
                self._some.clear()
                await self._some.wait()
            await asyncio.sleep(PERIOD_S)
            if self._tails:
                await self._round()

    async def _round(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            tails = dict(self._tails)
            for tail in tails.values():
                await stack.enter_async_context(tail.lock)
            news = await asyncio.to_thread(_read_all, tails)
            for run_id, new in news.items():
                await self._send(run_id, new)

    async def _send(self, run_id: str, new: tuple[int, bytes]) -> None:
        subject = LOG_CHUNK.of(node_id=self._node, run_id=run_id)
        for offset, data in chunks(*new):
            text = data.decode(errors="replace")
            chunk = LogChunk(run_id=run_id, offset=offset, size=len(data), text=text)
            await self._publish(subject, chunk.encode())


def _read_all(tails: dict[str, _Tail]) -> dict[str, tuple[int, bytes]]:
    found = ((run_id, _read_new(tail, last=False)) for run_id, tail in tails.items())
    return {run_id: new for run_id, new in found if new[1]}


def _read_new(tail: _Tail, *, last: bool) -> tuple[int, bytes]:
    """Return offset and bytes of what is new and is to be sent now. Blocks."""
    try:
        size = tail.path.stat().st_size
    except OSError:
        return 0, b""
    start = max(0, size - KEPT) if tail.offset is None else tail.offset
    if size - start > (ROUND if last else BEHIND):
        start = size - KEPT
    if size <= start:
        tail.offset = start
        return start, b""
    with tail.path.open("rb") as file:
        file.seek(start)
        data = file.read(min(size - start, ROUND))
    if not last:
        data = data[: whole(data)]
    tail.offset = start + len(data)
    return start, data


def whole(data: bytes) -> int:
    """Return how many bytes to take so that no character of UTF-8 is cut in two at the end."""
    for back in range(1, min(_LONGEST_CHARACTER, len(data)) + 1):
        length = next(length for first, length in _LENGTHS if data[-back] >= first)
        if length:
            return len(data) - back if length > back else len(data)
    return len(data)


def chunks(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield offset and bytes of pieces that fit a message."""
    at = 0
    while at < len(data):
        piece = data[at : at + CHUNK]
        taken = len(piece) if at + CHUNK >= len(data) else whole(piece)
        yield offset + at, piece[:taken]
        at += taken
