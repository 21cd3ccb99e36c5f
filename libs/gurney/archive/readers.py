"""Walks over zip and tar files that nobody vouches for. All of it blocks.

Python's readers take an archive at its word: its index, its headers and its offsets go to memory or decide where to
read next. The two guards stand between reader and file and bound that; the rest of the distrust is in `unpacking`.
"""

import gzip
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from gurney.errors import Invalid

#: What may be read of a file at once.
BLOCK = 1 << 20

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_GZIP_MAGIC = b"\x1f\x8b"
_INDEX_ENTRY = b"PK\x01\x02"
_INDEX_BYTES = 4_096
_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, struct.error, EOFError, NotImplementedError,
    RecursionError, RuntimeError, ValueError, OverflowError, LookupError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """What lies in the archive: a file with its reader, or a folder (the path ends in `/`)."""

    path: str
    read: Callable[[int], bytes]


def refuse(why: str, name: str | None = None) -> Invalid:
    """Return the error for an archive, naming the entry where there is one."""
    return Invalid.field("body", why if name is None else f"entry {name[:200]!r} {why}")


def require_zip(file: Path) -> None:
    with file.open("rb") as raw:
        if raw.read(4) not in _ZIP_MAGIC:
            raise refuse("is no zip")


def walk(file: Path, most: int) -> Iterator[Found]:
    """Iterate over files and folders in the archive's order; read each file to its end, or not at all, before the next.

    `most` bounds what an index may hold. Raises `Invalid` for what is broken, encrypted, a link or a device.
    """
    with file.open("rb") as raw:
        magic = raw.read(4)
        raw.seek(0)
        with _broken_is_invalid(None):
            if magic in _ZIP_MAGIC:
                yield from _walk_zip(raw, most)
            elif magic.startswith(_GZIP_MAGIC):
                with gzip.GzipFile(fileobj=raw) as unzipped:
                    yield from _walk_tar(cast("IO[bytes]", unzipped))
            else:
                yield from _walk_tar(raw)


def _walk_zip(raw: IO[bytes], most: int) -> Iterator[Found]:
    with zipfile.ZipFile(_ZipGuard(raw, most)) as archive:
        for info in archive.infolist():
            name = info.orig_filename  # `filename` ends at a NUL
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
                raise refuse("is a link or a device", name)
            if info.flag_bits & 0x41:
                raise refuse("is encrypted", name)
            if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise refuse("is compressed by another method than deflate", name)
            if name.endswith("/"):
                if info.file_size:
                    raise refuse("is a folder with content", name)
                yield Found(name, _nothing)
                continue
            with _broken_is_invalid(name), archive.open(info) as member:
                yield Found(name, _reader(member, name))


def _walk_tar(raw: IO[bytes]) -> Iterator[Found]:
    guard = _TarGuard(raw)
    with tarfile.open(
        fileobj=cast("IO[bytes]", guard), mode="r:", encoding="utf-8", errors="surrogateescape"
    ) as archive:
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it would remember them all
            if info.isdir():
                yield Found(f"{info.name}/", _nothing)
            elif info.isfile() and not info.issparse():
                member = archive.extractfile(info)
                if member is None:
                    raise refuse("cannot be read", info.name)
                yield Found(info.name, _reader(member, info.name))
            else:
                raise refuse("is a link, a device or sparse", info.name)
    if guard.last != bytes(tarfile.BLOCKSIZE):  # the reader takes any rubbish for the end
        raise refuse("the archive breaks off: it has no end mark")
    padding = raw.read(BLOCK)  # to the end, where gzip has its checksum
    if any(padding) or raw.read(1):
        raise refuse("the archive goes on behind its end mark")


def _reader(member: IO[bytes], name: str) -> Callable[[int], bytes]:
    def read(most: int) -> bytes:
        with _broken_is_invalid(name):
            return member.read(most)

    return read


def _nothing(_: int) -> bytes:
    return b""


@contextmanager
def _broken_is_invalid(name: str | None) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise refuse(f"is broken: {error}" if name else f"not a sound zip, tar or tar.gz: {error}", name) from error


class _ZipGuard:
    """Keeps an index out of memory that is larger than the entries that are allowed."""

    def __init__(self, raw: IO[bytes], most: int) -> None:
        self._raw = raw
        self._most = most
        self.seek, self.tell, self.seekable = raw.seek, raw.tell, raw.seekable

    def read(self, size: int = -1) -> bytes:
        if size > max(self._most * _INDEX_BYTES, BLOCK):
            raise refuse(f"the index of the archive is too large for {self._most} entries")
        data = self._raw.read(size)
        if data.startswith(_INDEX_ENTRY) and data.count(_INDEX_ENTRY) > self._most:
            raise refuse(f"the archive has more than {self._most} entries")
        return data


class _TarGuard:
    """Keeps headers of any size out of memory, and the reader from going back for ever."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self.tell = raw.tell
        self.last = b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= BLOCK:
            raise tarfile.ReadError("a header is too large")
        self.last = self._raw.read(size)
        return self.last

    def seek(self, position: int) -> int:
        if position < self._raw.tell():
            raise tarfile.ReadError("an entry points backwards")
        return self._raw.seek(position)
