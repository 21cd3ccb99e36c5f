"""Tells everyone who listens of the ends of runs."""

import asyncio
from collections.abc import AsyncIterator

from gurney.runtime.port import Observed


class Ends:
    """The listeners of one runtime."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Queue[Observed | None]] = set()
        self._is_open = False

    def open(self) -> None:
        self._is_open = True

    def close(self) -> None:
        """Let all listeners go."""
        self._is_open = False
        for queue in self._listeners:
            queue.put_nowait(None)

    def tell(self, observed: Observed) -> None:
        for queue in self._listeners:
            queue.put_nowait(observed)

    def listen(self) -> AsyncIterator[Observed]:
        """Yield the ends that are told from this call on; finishes with `close`."""
        queue: asyncio.Queue[Observed | None] = asyncio.Queue()
        self._listeners.add(queue)
        if not self._is_open:
            queue.put_nowait(None)
        return self._yield(queue)

    async def _yield(self, queue: asyncio.Queue[Observed | None]) -> AsyncIterator[Observed]:
        try:
            while (observed := await queue.get()) is not None:
                yield observed
        finally:
            self._listeners.discard(queue)
