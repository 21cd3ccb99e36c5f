"""A digest beside the bytes' way: a thread hashes what was taken in while more comes."""

import hashlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from gurney.objects.pieces import Chunk
from gurney.objects.port import Digest
from gurney.objects.threads import Lane, landed

#: Bytes per hop to a thread, and how many hops may be under way.
BATCH = 1 << 20
_UNDER_WAY = 3
#: What is so small is hashed at once: the hop would take longer.
_SMALL = 32 << 10


class Digesting:
    """Takes bytes in their order and tells their digest. Made for one task."""

    def __init__(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._lane = Lane()
        self._batch: list[Chunk] = []
        self._gathered = 0
        self._flying: deque[Future[None]] = deque()

    async def take(self, chunk: Chunk) -> None:
        """Take a chunk; waits while the thread is some MiB behind."""
        self._batch.append(chunk)
        self._gathered += len(chunk)
        self.size += len(chunk)
        if self._gathered >= BATCH:
            self._launch()
            while len(self._flying) > _UNDER_WAY:
                await landed(self._flying.popleft())

    def hurry(self) -> None:
        """Let the thread begin with what is gathered: no more comes."""
        if self._gathered > _SMALL:
            self._launch()

    async def digest(self) -> Digest:
        """Return the digest of all that was taken."""
        if self._flying or self._gathered > _SMALL:
            self._launch()
            while self._flying:
                await landed(self._flying.popleft())
        else:
            self._feed(self._batch)
            self._batch = []
        return Digest(self.size, self._sha256.hexdigest())

    def _launch(self) -> None:
        batch, self._batch, self._gathered = self._batch, [], 0
        self._flying.append(self._lane.submit(lambda: self._feed(batch)))

    def _feed(self, batch: Sequence[Chunk]) -> None:
        for chunk in batch:
            self._sha256.update(chunk)
