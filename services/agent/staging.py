"""Brings a payload to a folder of this host: list, sign, fetch, verify; each until it works or patience is over."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gurney.bus import Bus
from gurney.errors import Forbidden, GurneyError, NotFound, StoreUnavailable
from gurney.model.common import Page
from gurney.model.payload import FileList, FileView, SignedFile, SignFiles
from gurney.objects.port import Digest
from gurney.paths import check_path, is_folder
from gurney.subjects import PAYLOAD_FILES, PAYLOAD_SIGN
from gurney.tasks import spread
from gurney.transfer import fetch_to
from services.agent.effects import Counts
from services.agent.folders import seal, unseal
from services.agent.patience import Early, persist

#: Files in one message.
BATCH = 256
#: Files that one run moves at once.
WIDTH = 8
#: While one batch is fetched the next one is signed.
_BATCHES_AT_ONCE = 2
_PAGE = 1000
_READ_ONLY = 0o444


@dataclass(frozen=True)
class Source:
    """A payload, and the token by which it may be read."""

    payload: str
    token: str


class Staging:
    """The way of one payload. Made when it is worth asking for the first page already."""

    def __init__(self, bus: Bus, source: Source, folder: Path, *, lanes: asyncio.Semaphore, patience_s: float) -> None:
        self._bus = bus
        self._source = source
        self._folder = folder
        self._lanes = lanes
        self._patience_s = patience_s
        #: What is there, as far as it was listed.
        self.files: list[FileView] = []
        self._first = Early(lambda: self._page(None))

    def discard(self) -> None:
        self._first.discard()

    async def bring(self, counts: Counts) -> None:
        """Fill the folder and make it read-only; raises `GaveUp`."""
        page = await persist(self._first, self._patience_s)
        if not page.items:
            return
        await asyncio.to_thread(unseal, self._folder)
        await self._fetch(page, counts)
        while page.next_cursor is not None:
            cursor = page.next_cursor
            page = await persist(lambda cursor=cursor: self._page(cursor), self._patience_s)  # type: ignore[misc]
            await self._fetch(page, counts)
        await asyncio.to_thread(seal, self._folder)

    async def _page(self, cursor: str | None) -> Page[FileView]:
        source = self._source
        question = FileList(token=source.token, payload=source.payload, limit=_PAGE, cursor=cursor)
        return await self._bus.request(PAYLOAD_FILES, question)

    async def _fetch(self, page: Page[FileView], counts: Counts) -> None:
        for item in page.items:
            check_path(item.path)  # it becomes a path of this host
        self.files += page.items
        folders = [item.path for item in page.items if is_folder(item.path)]
        files = [item for item in page.items if not is_folder(item.path)]
        if folders:
            await persist(lambda: asyncio.to_thread(_make_folders, self._folder, folders), self._patience_s)
        if page.next_cursor is None:
            counts.total = counts.done + len(files)

        async def fetch(batch: Sequence[FileView]) -> None:
            await self._fetch_batch(batch, counts)

        await spread(fetch, list(_batches(files)), _BATCHES_AT_ONCE)

    async def _fetch_batch(self, files: Sequence[FileView], counts: Counts) -> None:
        left = {file.path for file in files}
        faults: list[GurneyError | OSError] = []

        async def fetch(item: SignedFile) -> None:
            try:
                async with self._lanes:
                    await self._fetch_one(item)
            except (GurneyError, OSError) as error:
                faults.append(error)
            else:
                left.discard(item.file.path)
                counts.done += 1

        async def fetch_all() -> None:
            faults.clear()
            question = SignFiles(token=self._source.token, payload=self._source.payload, paths=tuple(left))
            signed = await self._bus.request(PAYLOAD_SIGN, question)
            await spread(fetch, signed.items, WIDTH)
            if left:
                raise faults[0] if faults else NotFound(f"{len(left)} files of {self._source.payload} are gone")

        await persist(fetch_all, self._patience_s)

    async def _fetch_one(self, item: SignedFile) -> None:
        expected = Digest(item.file.size, item.file.sha256)
        try:
            await fetch_to(item.url, self._folder / item.file.path, expected, _READ_ONLY)
        except Forbidden as error:  # its time is over: the next round brings a fresh one
            raise StoreUnavailable(f"the URL of a file was refused: {error}") from error


def _make_folders(root: Path, folders: Sequence[str]) -> None:
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)


def _batches(files: Sequence[FileView]) -> Iterator[Sequence[FileView]]:
    for start in range(0, len(files), BATCH):
        yield files[start : start + BATCH]
