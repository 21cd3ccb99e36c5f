"""Archives written as streams: a chunk in, a chunk out, whatever the number and size of the files.

Close a stream that is not read to its end (`contextlib.aclosing`). A file whose bytes are not as many as announced
breaks the stream with `IntegrityError`.
"""

import tarfile
import zipfile
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, cast

from gurney.errors import IntegrityError
from gurney.objects.threads import hop
from gurney.paths import is_folder

_YIELD = 256 << 10
# Below this the hop to a thread costs more than the work.
_INLINE = 32 << 10
_TAR_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that goes into an archive; one whose path ends in `/` is an empty folder and is not opened."""

    path: str
    size: int
    modified_at: datetime
    open: Callable[[], AbstractAsyncContextManager[AsyncIterable[bytes]]]


async def zip_stream(entries: AsyncIterable[Entry]) -> AsyncGenerator[bytes, None]:
    """Return the entries as a zip, ZIP64 where sizes or numbers need it, without compression.

    The method is deflate at level 0, which stores: readers that take a zip as a stream need it to find a file's end.
    """
    sink = _Sink()
    archive = zipfile.ZipFile(cast("IO[bytes]", sink), "w", zipfile.ZIP_DEFLATED)
    try:
        async for entry in entries:
            async with aclosing(_zip_entry(archive, sink, entry)) as chunks:
                async for chunk in chunks:
                    yield chunk
    finally:
        archive.close()  # broken off, it writes into the void
    yield sink.take()


async def tar_stream(entries: AsyncIterable[Entry]) -> AsyncGenerator[bytes, None]:
    """Return the entries as a tar (POSIX.1-2001), where sizes and names have no limit."""
    sink = _Sink()
    async for entry in entries:
        sink.write(_tar_header(entry))
        if not is_folder(entry.path):
            async with entry.open() as chunks:
                async for chunk in exactly(entry.path, entry.size, chunks):
                    sink.write(chunk)
                    if sink.held >= _YIELD:
                        yield sink.take()
            sink.write(bytes(-entry.size % _TAR_BLOCK))
    sink.write(bytes(2 * _TAR_BLOCK))
    yield sink.take()


class _Sink:
    """Gathers what was written until it is worth handing on. Not seekable, so zipfile writes a stream."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.held = 0

    def write(self, data: bytes) -> int:
        self._parts.append(data)
        self.held += len(data)
        return len(data)

    def flush(self) -> None: ...

    def take(self) -> bytes:
        parts, self._parts, self.held = self._parts, [], 0
        return parts[0] if len(parts) == 1 else b"".join(parts)


async def _zip_entry(archive: zipfile.ZipFile, sink: _Sink, entry: Entry) -> AsyncGenerator[bytes, None]:
    info = zipfile.ZipInfo(entry.path, _zip_time(entry.modified_at))
    info.create_system = 3  # Unix, so that the mode counts
    if is_folder(entry.path):
        info.external_attr = (0o40755 << 16) | 0x10
        info.CRC = 0  # `mkdir` takes it as given
        archive.mkdir(info)
        return
    info.external_attr = 0o100644 << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    # zipfile offers no other way to give one file both a level and a time.
    info._compresslevel = 0  # type: ignore[attr-defined]  # noqa: SLF001
    info.file_size = entry.size
    with archive.open(info, "w") as member:
        async with entry.open() as chunks:
            async for chunk in exactly(entry.path, entry.size, chunks):
                if len(chunk) > _INLINE:
                    await hop(member.write, chunk)
                else:
                    member.write(chunk)
                if sink.held >= _YIELD:
                    yield sink.take()


async def exactly(name: str, size: int, chunks: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield bytes that are so many; raises `IntegrityError` as soon as there are more, and where there are fewer."""
    left = size
    async for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            break
        yield chunk
    if left:
        raise IntegrityError(f"{name} is not of the {size} bytes that were announced")


def _tar_header(entry: Entry) -> bytes:
    info = tarfile.TarInfo(entry.path.removesuffix("/"))
    info.mtime = int(entry.modified_at.timestamp())
    if is_folder(entry.path):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    else:
        info.size, info.mode = entry.size, 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8")


def _zip_time(at: datetime) -> tuple[int, int, int, int, int, int]:
    at = at.astimezone(UTC)
    return min(max(at.timetuple()[:6], (1980, 1, 1, 0, 0, 0)), (2107, 12, 31, 23, 59, 58))
