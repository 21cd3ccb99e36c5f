"""A streaming GET from a folder store: a thread reads and hashes ahead of who takes the chunks.

A small object is read, verified and closed in the first hop.
"""

import hashlib
import os
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import Future

from gurney.errors import IntegrityError, RangeNotSatisfiable
from gurney.objects import layout
from gurney.objects.port import Digest
from gurney.objects.signed import Target
from gurney.objects.threads import Lane, landed

_CHUNK = 1 << 20
_AHEAD = 3


class FileGet:
    """See `gurney.transfer.port.Get`. Made for one task."""

    def __init__(self, target: Target, offset: int, length: int | None, expected: Digest | None) -> None:
        self._target = target
        self._offset = offset
        self._length = length
        self._expected = expected
        self._sha256 = hashlib.sha256()
        self._fd = -1
        self._closed = False
        self._left = 0
        self._first = b""
        self._lane = Lane()
        self._ahead: deque[Future[bytes]] = deque()
        self.size = 0

    async def open(self) -> None:
        """Open the object and read what is small."""
        await landed(self._lane.submit(self._open))

    async def close(self) -> None:
        """Drop what was read ahead."""
        for future in self._ahead:
            future.cancel()
        if not self._closed:
            await landed(self._lane.submit(self._close))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._first:
            yield self._first
        chunks = -(-self._left // _CHUNK)
        for number in range(chunks):
            while len(self._ahead) < min(_AHEAD, chunks - number):
                self._ahead.append(self._lane.submit(self._read))
            yield await landed(self._ahead.popleft())

    # What follows runs in threads, in the order of the lane.

    @layout.translated()
    def _open(self) -> None:
        self._fd = layout.open_object(self._target.root, self._target.key)
        self.size = os.fstat(self._fd).st_size
        if self._expected is not None and self._expected.size != self.size:
            raise IntegrityError(f"{self._target.key} has {self.size} bytes where {self._expected.size} were stored")
        if self._offset > self.size:
            raise RangeNotSatisfiable(f"the object has {self.size} bytes")
        rest = self.size - self._offset
        self._left = rest if self._length is None else min(rest, self._length)
        if self._left <= _CHUNK:
            self._first = self._read()
            self._close()

    @layout.translated()
    def _read(self) -> bytes:
        wanted = min(self._left, _CHUNK)
        data = os.pread(self._fd, wanted, self._offset)
        if len(data) != wanted:
            raise IntegrityError(f"{self._target.key} ends early: the store lost bytes")
        self._offset += wanted
        self._left -= wanted
        if self._expected is not None:
            self._sha256.update(data)
            if not self._left and self._sha256.hexdigest() != self._expected.sha256:
                raise IntegrityError(f"{self._target.key} is not what was stored: its SHA-256 differs")
        return data

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        self._closed = True
        if fd >= 0:
            os.close(fd)
