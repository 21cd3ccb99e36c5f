"""Unpacks an uploaded archive in two passes: all of it is read and judged before the first byte is handed out."""

from collections import deque
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event

from gurney.archive.readers import BLOCK, refuse, require_zip, walk
from gurney.errors import Invalid
from gurney.objects.threads import Lane, hop_stoppable, landed
from gurney.paths import check_path, folders_of, is_folder

# Judging is minutes of work for one core: it must not hold the threads that move bytes.
_JUDGES = ThreadPoolExecutor(2, thread_name_prefix="gurney-archive")


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may hold. Entries are files and folders; bytes are unpacked ones.

    `ratio` is of unpacked to packed bytes; it counts from `ratio_from` bytes on, so that small files of zeros pass.
    """

    entries: int = 100_000
    bytes: int = 1 << 40
    ratio: int = 200
    ratio_from: int = 256 << 20
    #: No other kind of archive is taken.
    zip_only: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """A file of the archive, or an empty folder (its path ends in `/`)."""

    path: str
    size: int


class Unpacked:
    """An archive that was found good: its members, and one iteration over them with their bytes."""

    def __init__(self, file: Path, limits: Limits, members: tuple[Member, ...]) -> None:
        self.members = members
        self._lane = Lane()
        self._parts = _parts(file, limits)
        self._ready: deque[tuple[int, bytes]] = deque()

    async def __aiter__(self) -> AsyncIterator[tuple[Member, AsyncIterator[bytes]]]:
        """Iterate in order over members and their chunks; what is not taken before the next member is skipped."""
        for index, member in enumerate(self.members):
            yield member, self._chunks(index)
            async for _ in self._chunks(index):
                pass

    async def close(self) -> None:
        await landed(self._lane.submit(self._parts.close))

    async def _chunks(self, index: int) -> AsyncIterator[bytes]:
        while True:
            if not self._ready:
                self._ready.extend(await landed(self._lane.submit(partial(_take, self._parts))))
            if not self._ready or self._ready[0][0] != index:
                return
            yield self._ready.popleft()[1]


@asynccontextmanager
async def unpack(file: Path, limits: Limits | None = None) -> AsyncIterator[Unpacked]:
    """Open a zip, tar or tar.gz that was spooled to `file`; `Invalid` (field `body`) names the entry that is not good.

    Refused are paths that a payload may not hold, duplicates, a file where another needs a folder, links, devices,
    encryption, broken entries and more than the limits. A leading `./` is dropped. Memory does not grow with the files.
    """
    limits = limits or Limits()
    members = await hop_stoppable(partial(_judge, file, limits), _JUDGES)
    unpacked = Unpacked(file, limits, members)
    try:
        yield unpacked
    finally:
        await unpacked.close()


def _judge(file: Path, limits: Limits, stop: Event) -> tuple[Member, ...]:
    if limits.zip_only:
        require_zip(file)
    judge = _Judge(limits, file.stat().st_size)
    members = []
    for found in walk(file, limits.entries):
        path = _clean(found.path)
        judge.admit(path, found.path)
        if path and not is_folder(path):
            size = 0
            while data := found.read(BLOCK):
                size += len(data)
                judge.grow(len(data), path)
                if stop.is_set():
                    raise refuse("the upload was called off")
            members.append(Member(path, size))
    return (*members, *(Member(path, 0) for path in sorted(judge.named - judge.needed)))


def _parts(file: Path, limits: Limits) -> Generator[tuple[int, bytes], None, None]:
    index = -1
    for found in walk(file, limits.entries):
        if not is_folder(found.path):
            index += 1
            while data := found.read(BLOCK):
                yield index, data


def _take(parts: Iterator[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    taken, size = [], 0
    for part in parts:
        taken.append(part)
        size += len(part[1])
        if size >= BLOCK:
            break
    return taken


def _clean(name: str) -> str:
    while name.startswith("./"):  # as `tar c .` writes them
        name = name[2:]
    return "" if name in {".", "/"} else name


@dataclass
class _Judge:
    """Sees one entry after the other and says no."""

    limits: Limits
    packed: int
    #: Folders that the archive names, and those that a path goes through.
    named: set[str] = field(default_factory=set)
    needed: set[str] = field(default_factory=set)
    _files: set[str] = field(default_factory=set)
    _entries: int = 0
    _bytes: int = 0

    def admit(self, path: str, name: str) -> None:
        self._entries += 1
        if self._entries > self.limits.entries:
            raise refuse(f"the archive has more than {self.limits.entries} entries")
        if not path:  # the folder that was packed
            return
        try:
            check_path(path)
        except Invalid as error:
            raise refuse(f"has a path that is not allowed: it {error.errors[0].message}", name) from error
        if path in self._files:
            raise refuse("comes twice", name)
        above = set(folders_of(path))
        if not self._files.isdisjoint(folder[:-1] for folder in (*above, path) if is_folder(folder)):
            raise refuse("needs a folder where the archive has a file", name)
        if f"{path}/" in self.needed or f"{path}/" in self.named:
            raise refuse("is a file where the archive has a folder", name)
        (self.named if is_folder(path) else self._files).add(path)
        self.needed |= above

    def grow(self, size: int, name: str) -> None:
        self._bytes += size
        if self._bytes > self.limits.bytes:
            raise refuse(f"takes the archive over {self.limits.bytes} bytes unpacked", name)
        if self._bytes > max(self.packed * self.limits.ratio, self.limits.ratio_from):
            raise refuse(f"takes the archive over {self.limits.ratio} times its packed size", name)
