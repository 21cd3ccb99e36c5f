"""Putting into a folder store, getting out of it, and what it leaves in its folders."""

import hashlib
from pathlib import Path

from gurney.objects.folder import FolderObjects
from gurney.objects.port import Digest
from gurney.transfer import open_get, open_put

MIB = 1 << 20
KEY = "pay_x/upl_y"


def digest_of(data: bytes) -> Digest:
    return Digest(len(data), hashlib.sha256(data).hexdigest())


async def put(objects: FolderObjects, data: bytes, key: str = KEY) -> Digest:
    async with open_put(objects.sign_put(key)) as upload:
        await upload.write(data)
        return await upload.commit()


async def get(url: str, *, offset: int = 0, length: int | None = None, expected: Digest | None = None) -> bytes:
    async with open_get(url, offset, length, expected) as download:
        return b"".join([chunk async for chunk in download])


def files_under(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}
