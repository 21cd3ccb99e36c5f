"""The mover for `file:` URLs, which a folder store of this host signs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from gurney.objects.port import Digest
from gurney.objects.signed import Target, Verb, admit, admit_known
from gurney.objects.threads import hop, hop_stoppable
from gurney.transfer import copy
from gurney.transfer.file_get import FileGet
from gurney.transfer.file_put import FilePut
from gurney.transfer.port import Ask


class FileMover:
    """Reads and writes the store's folder itself."""

    @asynccontextmanager
    async def open_put(self, url: str, ask: Ask | None = None, size: int | None = None) -> AsyncIterator[FilePut]:
        del ask, size  # a folder takes any size under the first URL, at once
        put = FilePut(await _admitted(url, "PUT"))
        try:
            yield put
        finally:
            await put.close()

    @asynccontextmanager
    async def open_get(
        self, url: str, offset: int, length: int | None, expected: Digest | None
    ) -> AsyncIterator[FileGet]:
        get = FileGet(await _admitted(url, "GET"), offset, length, expected)
        try:
            await get.open()
            yield get
        finally:
            await get.close()

    async def fetch_to(self, url: str, path: Path, expected: Digest, mode: int) -> None:
        await hop_stoppable(partial(copy.fetch, url, path, expected, mode))

    async def put_file(self, path: Path, url: str, ask: Ask | None = None) -> Digest:
        del ask
        return await hop_stoppable(partial(copy.store, path, url))


async def _admitted(url: str, verb: Verb) -> Target:
    known = admit_known(url, verb)
    return known if known is not None else await hop(admit, url, verb)
