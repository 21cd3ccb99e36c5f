"""Bodies of requests that lie in memory: sent while they fill where their size is known, and sent again from there."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Self

Chunk = bytes | memoryview


class Piece:
    """Takes up to `size` bytes. `size` is what it will have; until it is filled or finished, more is to come."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.room = size
        self._chunks: list[Chunk] = []
        self._more = asyncio.Event()
        self._whole = asyncio.Event()
        if not size:
            self._whole.set()

    @classmethod
    def of(cls, chunks: Iterable[Chunk]) -> Self:
        """Return a piece that has come already."""
        known = list(chunks)
        piece = cls(sum(map(len, known)))
        for chunk in known:
            piece.add(chunk)
        return piece

    def add(self, chunk: Chunk) -> None:
        """Take a chunk, for which there must be room."""
        self._chunks.append(chunk)
        self.room -= len(chunk)
        self._more.set()
        if not self.room:
            self._whole.set()

    def finish(self) -> None:
        """Say that no more comes."""
        self.size -= self.room
        self.room = 0
        self._whole.set()

    async def whole(self) -> None:
        """Return when all of it is there."""
        await self._whole.wait()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        at = 0
        while True:
            for chunk in self._chunks[at:]:
                at += 1
                yield chunk
            if at < len(self._chunks):
                continue
            if not self.room:
                return
            self._more.clear()
            await self._more.wait()
