"""The port `objects` on a folder of this host. Its URLs work on this host only: several hosts need S3."""

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

from gurney import clock
from gurney.errors import Conflict, StoreUnavailable
from gurney.model.payload import SignedUpload, WantedParts
from gurney.objects import layout
from gurney.objects.port import URL_LIFETIME_S, ObjectInfo, check_key
from gurney.objects.signed import Verb, sign
from gurney.objects.threads import hop

_BATCH = 1_000


class FolderObjects:
    """Keeps objects under `root`, which it makes for its owner alone. Several may be open on one folder."""

    def __init__(self, root: Path, now: Callable[[], datetime] = clock.now) -> None:
        self._root = root.absolute()
        self._now = now
        self._secret: bytes | None = None

    async def open(self) -> None:
        self._secret = await hop(layout.prepare, self._root)

    async def close(self) -> None:
        self._secret = None

    def sign_put(self, key: str) -> str:
        return self._sign(key, "PUT")

    def sign_get(self, key: str, saved_as: str | None = None) -> str:
        del saved_as  # no browser comes here
        return self._sign(key, "GET")

    async def sign_upload(self, key: str, parts: WantedParts | None = None) -> SignedUpload:
        if parts is not None:
            raise Conflict("a folder takes objects whole, whatever their size")
        return SignedUpload(put=self.sign_put(key), get=self.sign_get(key))

    def _sign(self, key: str, verb: Verb) -> str:
        if self._secret is None:
            raise StoreUnavailable("the object store is not open")
        return sign(self._root, check_key(key), verb, self._now() + timedelta(seconds=URL_LIFETIME_S), self._secret)

    async def stat(self, key: str) -> ObjectInfo | None:
        return await hop(_stat, layout.path_of(self._root, check_key(key)), key)

    async def delete(self, keys: Iterable[str]) -> None:
        await hop(_delete, self._root, [check_key(key) for key in keys])

    async def give_up(self, keys: Iterable[str]) -> None:
        await self.delete(keys)  # what is not complete has no key

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        found = _list(self._root, prefix)
        while batch := await hop(_take, found):
            for info in batch:
                yield info

    async def sweep(self, older_than_s: float) -> int:
        return await hop(_sweep, self._root, self._now().timestamp() - older_than_s)


@layout.translated()
def _stat(path: Path, key: str) -> ObjectInfo | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return _info(key, status)


@layout.translated()
def _delete(root: Path, keys: Iterable[str]) -> None:
    touched: set[Path] = set()
    for key in keys:
        path = layout.path_of(root, key)
        with suppress(FileNotFoundError):
            path.unlink()
            touched.add(path.parent)
    for folder in touched:
        with suppress(OSError):  # it is not empty, or a PUT holds it: then it stays
            folder.rmdir()
    for folder in touched | {folder.parent for folder in touched}:
        with suppress(FileNotFoundError):
            layout.sync_folder(folder)


@layout.translated()
def _sweep(root: Path, before: float) -> int:
    swept = 0
    for path in (root / "tmp").iterdir():
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < before:
                path.unlink()
                swept += 1
    for owner in (root / "objects").glob("*/*"):
        with suppress(OSError):  # not empty
            owner.rmdir()
    return swept


@layout.translated()
def _take(found: Iterator[ObjectInfo]) -> list[ObjectInfo]:
    return list(islice(found, _BATCH))


def _list(root: Path, prefix: str) -> Iterator[ObjectInfo]:
    for folder in _owners(root, prefix):
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                key = f"{folder.name}/{entry.name}"
                if key.startswith(prefix):
                    with suppress(FileNotFoundError):
                        yield _info(key, entry.stat(follow_symlinks=False))


def _owners(root: Path, prefix: str) -> Iterator[Path]:
    owner, slash, _ = prefix.partition("/")
    if slash:
        with suppress(ValueError):  # no object can lie there
            yield layout.path_of(root, check_key(f"{owner}/x")).parent
        return
    for fan in (root / "objects").iterdir():
        yield from (path for path in fan.iterdir() if path.name.startswith(prefix))


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))
