"""What a mover promises. Who moves bytes knows signed URLs and nothing of the store behind them."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from gurney.model.payload import SignedUpload, WantedParts
from gurney.objects.port import Digest


class Ask(Protocol):
    """Asks the owner of an upload for fresh URLs: where one has lapsed, and for parts of what is large."""

    async def __call__(self, parts: WantedParts | None = None) -> SignedUpload: ...


class Put(Protocol):
    """An object on its way in. What was not committed leaves nothing behind."""

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take bytes of any length; waits while some MiB are under way. May raise what an earlier write met."""

    async def commit(self) -> Digest:
        """Make the object durable and visible; returns what was stored. Nothing can be written after it."""


class Get(Protocol):
    """An object on its way out: iterate once over its chunks."""

    #: Size of the whole object in bytes, whatever part of it is read.
    size: int

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class Mover(Protocol):
    """Moves bytes over the URLs of one scheme."""

    def open_put(self, url: str, ask: Ask | None, size: int | None) -> AbstractAsyncContextManager[Put]: ...

    def open_get(
        self, url: str, offset: int, length: int | None, expected: Digest | None
    ) -> AbstractAsyncContextManager[Get]: ...

    async def fetch_to(self, url: str, path: Path, expected: Digest, mode: int) -> None: ...

    async def put_file(self, path: Path, url: str, ask: Ask | None) -> Digest: ...
