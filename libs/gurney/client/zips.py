"""Zips that are sent and zips that come. Files are packed while they are sent: nothing of them is held in memory."""

import asyncio
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile

from gurney.archive import Entry, Limits, exactly, unpack, zip_stream
from gurney.client.http import Incoming, Moved, chunks_of
from gurney.client.payloads import local_files
from gurney.errors import IntegrityError, Invalid
from gurney.paths import is_folder

#: Whoever fetches an output wants all of it: no ratio that deflate can reach is refused.
LIMITS = Limits(entries=1_000_000, ratio=1_100)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A zip to send; `size`: its bytes, None where it is made on the way."""

    chunks: AsyncGenerator[bytes, None]
    size: int | None


async def outgoing(paths: Sequence[Path], moved: Moved | None = None) -> Outgoing:
    """Return a zip as it is, and all else as a zip that is made while it is sent. Raises `Invalid` and OSError."""
    if len(paths) == 1 and paths[0].suffix.lower() == ".zip" and not await asyncio.to_thread(paths[0].is_dir):
        size = await asyncio.to_thread(_zip_size, paths[0])
        return Outgoing(_exactly(paths[0], size, moved), size)
    entries = await asyncio.to_thread(_entries, paths, moved)
    return Outgoing(zip_stream(_each(entries)), None)


def _zip_size(path: Path) -> int:
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):
        raise Invalid(f"{path} is no zip")
    return size


async def _exactly(path: Path, size: int, moved: Moved | None) -> AsyncGenerator[bytes, None]:
    async with aclosing(chunks_of(str(path), moved)) as chunks:
        async for chunk in exactly(str(path), size, chunks):
            yield chunk


def _entries(paths: Sequence[Path], moved: Moved | None) -> Sequence[Entry]:
    found = []
    for path, file in local_files(paths):
        stat = file.stat()
        opened = partial(_opened, str(file), moved)
        found.append(Entry(path, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC), opened))
    if not found:
        raise Invalid(f"there are no files in {', '.join(map(str, paths))}" if paths else "give files or folders")
    return found


@asynccontextmanager
async def _opened(path: str, moved: Moved | None) -> AsyncIterator[AsyncIterator[bytes]]:
    async with aclosing(chunks_of(path, moved)) as chunks:
        yield chunks


async def _each(entries: Sequence[Entry]) -> AsyncIterator[Entry]:
    for entry in entries:
        yield entry


@asynccontextmanager
async def temporary(folder: Path | None = None) -> AsyncIterator[Path]:
    """Yield an empty file for a zip, which goes in the end; by default where temporary files go."""
    file = await asyncio.to_thread(NamedTemporaryFile, dir=folder, prefix=".gurney-", suffix=".zip")
    try:
        yield Path(file.name)
    finally:
        await asyncio.shield(asyncio.to_thread(file.close))


async def received(incoming: Incoming, part: Path, moved: Moved | None = None) -> int:
    """Write a zip that comes to a file; returns its bytes. Raises `Unavailable` where it breaks off."""
    size = 0
    with await asyncio.to_thread(part.open, "wb") as out:
        async for chunk in incoming.chunks:
            await asyncio.to_thread(out.write, chunk)
            size += len(chunk)
            if moved:
                moved(len(chunk))
    if not await asyncio.to_thread(zipfile.is_zipfile, part):
        raise IntegrityError(f"the {size} bytes that came are no sound zip")
    return size


async def unpacked(archive: Path, folder: Path) -> int:
    """Unpack a zip that nobody vouches for; returns how many files it had. What lies in the folder is replaced."""
    count = 0
    async with unpack(archive, LIMITS) as found:
        async for member, chunks in found:
            target = folder / member.path
            if is_folder(member.path):
                await asyncio.to_thread(target.mkdir, parents=True, exist_ok=True)
                continue
            await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
            with await asyncio.to_thread(target.open, "wb") as out:
                async for chunk in chunks:
                    await asyncio.to_thread(out.write, chunk)
            count += 1
    return count
