"""The mover for `http:` and `https:` URLs, which an S3 server's account signs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gurney.objects.port import Digest
from gurney.objects.sessions import pooled
from gurney.transfer import http_file
from gurney.transfer.http_get import HttpGet, opened
from gurney.transfer.http_put import HttpPut
from gurney.transfer.port import Ask


class HttpMover:
    """Moves bytes through the pool of the running loop."""

    @asynccontextmanager
    async def open_put(self, url: str, ask: Ask | None = None, size: int | None = None) -> AsyncIterator[HttpPut]:
        async with pooled() as session:
            put = HttpPut(session, url, ask, size)
            try:
                yield put
            finally:
                await put.close()

    @asynccontextmanager
    async def open_get(
        self, url: str, offset: int, length: int | None, expected: Digest | None
    ) -> AsyncIterator[HttpGet]:
        async with pooled() as session, opened(session, url, offset, length, expected) as get:
            yield get

    async def fetch_to(self, url: str, path: Path, expected: Digest, mode: int) -> None:
        async with pooled() as session:
            await http_file.fetch(session, url, path, expected, mode)

    async def put_file(self, path: Path, url: str, ask: Ask | None = None) -> Digest:
        async with self.open_put(url, ask) as put:
            return await http_file.store(path, put)
