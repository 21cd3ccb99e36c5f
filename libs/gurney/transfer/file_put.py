"""A streaming PUT into a folder store: chunks gather to batches; threads write and hash them side by side.

A small object costs one hop to a thread: nothing is opened before the first full batch, or the commit.
"""

import hashlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from gurney.errors import GurneyError
from gurney.objects import layout
from gurney.objects.port import Digest
from gurney.objects.signed import Target
from gurney.objects.threads import Lane, landed
from gurney.transfer.copy import write_all

#: Bytes per hop to a thread. With those under way and the one that fills, a PUT holds 4 MiB.
_BATCH = 1 << 20
_UNDER_WAY = 3
_MANY_CHUNKS = 256


class FilePut:
    """See `gurney.transfer.port.Put`. Made for one task."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._batch: list[bytes] = []
        self._gathered = 0
        self._size = 0
        self._sha256 = hashlib.sha256()
        self._temp: layout.Temp | None = None
        self._fault: GurneyError | None = None
        self._writes, self._hashes = Lane(), Lane()
        self._flying: deque[tuple[Future[None], Future[None]]] = deque()
        self._streams = False

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        data = chunk if isinstance(chunk, bytes) else bytes(chunk)  # others may change under us
        self._batch.append(data)
        self._gathered += len(data)
        if self._gathered >= _BATCH:
            self._launch()
            await self._land(_UNDER_WAY)

    async def commit(self) -> Digest:
        if not self._streams:
            batch = self._take_batch()
            await landed(self._writes.submit(lambda: self._write_whole(batch)))
        else:
            self._launch()
            await self._land(0)
            await landed(self._writes.submit(self._publish))
        return Digest(self._size, self._sha256.hexdigest())

    async def close(self) -> None:
        """Drop what was not committed, after the jobs under way."""
        if self._streams:
            await landed(self._writes.submit(self._drop))

    def _launch(self) -> None:
        self._streams = True
        batch = self._take_batch()
        self._flying.append(
            (self._hashes.submit(lambda: self._feed(batch)), self._writes.submit(lambda: self._write(batch)))
        )

    async def _land(self, most: int) -> None:
        while len(self._flying) > most:
            for future in self._flying.popleft():
                await landed(future)

    def _take_batch(self) -> Sequence[bytes]:
        batch, self._batch = self._batch, []
        self._size += self._gathered
        self._gathered = 0
        return batch if len(batch) <= _MANY_CHUNKS else [b"".join(batch)]

    # What follows runs in threads, in the order of its lane.

    def _feed(self, batch: Sequence[bytes]) -> None:
        for data in batch:
            self._sha256.update(data)

    def _write(self, batch: Sequence[bytes]) -> None:
        if self._fault is not None:
            raise self._fault
        try:
            with layout.translated():
                if self._temp is None:
                    layout.refuse_taken(self._target.root, self._target.key)
                    self._temp = layout.open_temp(self._target.root)
                for data in batch:
                    write_all(self._temp.fd, data)
        except GurneyError as error:
            self._fault = error  # what was written has a gap from here on
            raise

    def _publish(self) -> None:
        if self._fault is not None:
            raise self._fault
        if self._temp is None:
            raise ValueError("the upload was committed or closed")
        with layout.translated():
            self._temp.publish(self._target.key)
        self._drop()

    def _write_whole(self, batch: Sequence[bytes]) -> None:
        try:
            self._feed(batch)
            self._write(batch)
            self._publish()
        finally:
            self._drop()

    def _drop(self) -> None:
        temp, self._temp = self._temp, None
        if temp is not None:
            temp.close()
