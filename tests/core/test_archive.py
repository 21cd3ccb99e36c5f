"""Archives go out as streams that others read."""

import io
import os
import stat
import struct
import subprocess
import tarfile
import tracemalloc
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from gurney.archive import Entry, tar_stream, unpack, zip_stream
from gurney.errors import IntegrityError

AT = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
MIB = 1 << 20
Files = dict[str, bytes]


@asynccontextmanager
async def opened(data: bytes, chunk: int) -> AsyncIterator[AsyncIterator[bytes]]:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), chunk):
            yield data[start : start + chunk]

    yield chunks()


async def entries_of(files: Files, chunk: int = MIB) -> AsyncIterator[Entry]:
    for path, data in files.items():
        yield Entry(path, len(data), AT, partial(opened, data, chunk))


async def joined(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in stream])


FILES: Files = {
    "a/b.dcm": os.urandom(3 * MIB + 17),
    "empty": b"",
    "a/" + "long/" * 60 + "name": b"deep",
    "größe/\u8103.nii": bytes(100_000),
    "none/": b"",
    **{f"many/{number}": str(number).encode() * number for number in range(300)},
}


@pytest.mark.parametrize("chunk", [1_000, 100_000, 4 * MIB])
async def test_zip_reads_back(chunk: int) -> None:
    """A zip stream holds every file with its bytes, mode and time, whatever the chunks it was made of."""
    with zipfile.ZipFile(io.BytesIO(await joined(zip_stream(entries_of(FILES, chunk))))) as archive:
        assert {info.filename: archive.read(info) for info in archive.infolist()} == FILES
        info = archive.getinfo("empty")
        assert info.date_time == (2026, 2, 3, 4, 5, 6)
        assert info.external_attr >> 16 == 0o100644
        assert stat.S_ISDIR(archive.getinfo("none/").external_attr >> 16)


async def test_tar_reads_back() -> None:
    """A tar stream holds every file with its bytes, mode and time."""
    with tarfile.open(fileobj=io.BytesIO(await joined(tar_stream(entries_of(FILES, 1_000))))) as archive:
        found = {}
        for info in archive:
            member = archive.extractfile(info)
            found[info.name + "/" * info.isdir()] = member.read() if member else b""
            assert (info.mtime, info.mode) == (AT.timestamp(), 0o755 if info.isdir() else 0o644)
        assert found == FILES


async def test_other_tools_read_them(tmp_path: Path) -> None:
    """GNU tar unpacks the tar, and Python's own zip tests the zip."""
    (tmp_path / "x.tar").write_bytes(await joined(tar_stream(entries_of(FILES))))
    subprocess.run(["tar", "xf", "x.tar"], cwd=tmp_path, check=True)  # noqa: ASYNC221
    assert (tmp_path / "a/b.dcm").read_bytes() == FILES["a/b.dcm"]
    assert (tmp_path / "none").is_dir()
    with zipfile.ZipFile(io.BytesIO(await joined(zip_stream(entries_of(FILES))))) as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize("stream", [zip_stream, tar_stream])
@pytest.mark.parametrize("size", [0, 5, 2 * MIB])
async def test_files_that_change_break_the_stream(
    stream: Callable[[AsyncIterator[Entry]], AsyncIterator[bytes]], size: int
) -> None:
    """A file of another size than announced is an error, not a broken archive that looks whole."""

    async def entries() -> AsyncIterator[Entry]:
        yield Entry("good", 3, AT, partial(opened, b"abc", MIB))
        yield Entry("bad", MIB, AT, partial(opened, bytes(size), MIB))

    with pytest.raises(IntegrityError, match="bad"):
        await joined(stream(entries()))


@pytest.mark.parametrize("stream", [zip_stream, tar_stream])
async def test_large_archives_take_little_memory(
    stream: Callable[[AsyncIterator[Entry]], AsyncIterator[bytes]],
) -> None:
    """A file beyond 4 GiB streams with a few MiB of memory, and its size is told in full."""
    size = (4 << 30) + 5
    block = bytes(8 * MIB)

    @asynccontextmanager
    async def huge() -> AsyncIterator[AsyncIterator[bytes]]:
        async def chunks() -> AsyncIterator[bytes]:
            left = size
            while left:
                yield block[:left]
                left -= min(left, len(block))

        yield chunks()

    async def entries() -> AsyncIterator[Entry]:
        yield Entry("huge", size, AT, huge)

    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tail, head, length = b"", b"", 0
    async for chunk in stream(entries()):
        head = head or chunk[:2048]
        tail, length = chunk, length + len(chunk)
    grown = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert grown < 48 * MIB
    assert length > size
    if stream is zip_stream:
        assert struct.pack("<Q", size) in tail
    else:
        assert tarfile.TarInfo.frombuf(head[:512], "utf-8", "strict").size == size


async def test_streams_can_be_left() -> None:
    """Who closes a stream in the middle gets no error and leaves no file open."""
    open_now = 0

    @asynccontextmanager
    async def watched() -> AsyncIterator[AsyncIterator[bytes]]:
        nonlocal open_now
        open_now += 1
        async with opened(bytes(9 * MIB), MIB) as chunks:
            try:
                yield chunks
            finally:
                open_now -= 1

    async def entries() -> AsyncIterator[Entry]:
        yield Entry("a", 9 * MIB, AT, watched)

    for stream in (zip_stream, tar_stream):
        async with aclosing(stream(entries())) as chunks:
            async for _ in chunks:
                assert open_now == 1
                break
        assert open_now == 0


async def test_times_outside_of_what_a_zip_can_tell() -> None:
    """Times before 1980 and after 2107 become the nearest one."""

    async def entries() -> AsyncIterator[Entry]:
        for year in (1970, 2200):
            yield Entry(str(year), 0, datetime(year, 1, 1, tzinfo=UTC), partial(opened, b"", 1))

    with zipfile.ZipFile(io.BytesIO(await joined(zip_stream(entries())))) as archive:
        assert [info.date_time[0] for info in archive.infolist()] == [1980, 2107]


@pytest.mark.parametrize("stream", [zip_stream, tar_stream])
async def test_own_archives_unpack(
    stream: Callable[[AsyncIterator[Entry]], AsyncIterator[bytes]], tmp_path: Path
) -> None:
    """What was packed here unpacks here."""
    (tmp_path / "spooled").write_bytes(await joined(stream(entries_of(FILES))))
    async with unpack(tmp_path / "spooled") as archive:
        assert {member.path: await joined(chunks) async for member, chunks in archive} == FILES
