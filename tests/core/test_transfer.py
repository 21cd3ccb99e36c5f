"""Movers over a folder store: verification, backpressure, and what a fault leaves behind."""

import asyncio
import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event

import pytest

from gurney.errors import IntegrityError, RangeNotSatisfiable, StoreUnavailable
from gurney.objects import layout
from gurney.objects.folder import FolderObjects
from gurney.objects.port import Digest
from gurney.objects.threads import Lane, landed
from gurney.transfer import copy, file_put, open_get, open_put
from tests.core.folder_store import KEY, MIB, digest_of, files_under, get, put


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_writes_of_all_kinds_add_up(objects: FolderObjects) -> None:
    """Chunks of any size and kind make one object, and a buffer may change once `write` has returned."""
    sent, reused = b"", bytearray(70_000)
    async with open_put(objects.sign_put(KEY)) as upload:
        for number in range(3_000):
            reused[:] = bytes([number % 256]) * len(reused)
            chunk = (b"", b"ab", bytes(reused[:700]))[number % 3]
            for data in (chunk, memoryview(reused)[: number % 5], memoryview(b"abcdef").cast("H")):
                sent += bytes(data)
                await upload.write(data)
        assert await upload.commit() == digest_of(sent)
    assert await get(objects.sign_get(KEY)) == sent


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 5 * MIB + 7])
async def test_verified_reads_give_what_was_stored(objects: FolderObjects, size: int) -> None:
    """A read that expects the digest of what was stored gives all of it, in chunks of at most 1 MiB."""
    data = os.urandom(size)
    digest = await put(objects, data)
    async with open_get(objects.sign_get(KEY), expected=digest) as download:
        assert download.size == size
        chunks = [chunk async for chunk in download]
    assert b"".join(chunks) == data
    assert all(0 < len(chunk) <= MIB for chunk in chunks)


@pytest.mark.parametrize("size", [1, MIB, 5 * MIB + 7, 6 * MIB])
async def test_a_wrong_digest_holds_the_last_chunk_back(objects: FolderObjects, size: int) -> None:
    """Where a byte differs, `IntegrityError` comes before the body is complete."""
    data = os.urandom(size)
    digest = await put(objects, data)
    path = layout.path_of(objects._root, KEY)
    path.chmod(0o600)
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    got = 0

    async def read() -> None:
        nonlocal got
        async with open_get(objects.sign_get(KEY), expected=digest) as download:
            async for chunk in download:
                got += len(chunk)

    with pytest.raises(IntegrityError, match="SHA-256"):
        await read()
    assert got == (size - 1) // MIB * MIB


async def test_a_wrong_size_gives_no_chunk(objects: FolderObjects) -> None:
    """Where the size differs, nothing is handed out."""
    digest = await put(objects, bytes(3 * MIB))
    with pytest.raises(IntegrityError, match="bytes"):
        async with open_get(objects.sign_get(KEY), expected=Digest(digest.size + 1, digest.sha256)):
            pytest.fail("it opened")


async def test_objects_that_shrink_break_the_read(objects: FolderObjects) -> None:
    """A file that loses bytes under a reader without digest never looks complete."""
    await put(objects, bytes(9 * MIB))
    async with open_get(objects.sign_get(KEY)) as download:
        path = layout.path_of(objects._root, KEY)
        path.chmod(0o600)
        os.truncate(path, 5 * MIB + 3)
        with pytest.raises(IntegrityError, match="ends early"):
            async for _ in download:
                pass


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 0), (0, 1), (7, MIB), (MIB, 3 * MIB), (5 * MIB, None), (3, 99 * MIB), (6 * MIB, 1)]
)
async def test_ranges(objects: FolderObjects, offset: int, length: int | None) -> None:
    """A range gives exactly its bytes, clipped to the object."""
    data = os.urandom(6 * MIB)
    await put(objects, data)
    end = None if length is None else offset + length
    assert await get(objects.sign_get(KEY), offset=offset, length=length) == data[offset:end]


async def test_ranges_past_the_end_are_refused(objects: FolderObjects) -> None:
    """A range that begins behind the object is an error, and so is a digest of a range."""
    await put(objects, b"abc")
    with pytest.raises(RangeNotSatisfiable):
        await get(objects.sign_get(KEY), offset=4)
    with pytest.raises(ValueError, match="whole object"):
        await get(objects.sign_get(KEY), offset=1, expected=digest_of(b"bc"))


async def test_a_slow_store_holds_the_writer_back(objects: FolderObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing reaches the disk, an upload takes a few MiB and then waits."""
    gate = Event()
    real = copy.write_all
    monkeypatch.setattr(file_put, "write_all", lambda fd, data: gate.wait(30) and real(fd, data))
    taken = 0

    async def feed() -> Digest:
        nonlocal taken
        async with open_put(objects.sign_put(KEY)) as upload:
            for _ in range(32):
                await upload.write(bytes(MIB))
                taken += 1
            return await upload.commit()

    feeder = asyncio.create_task(feed())
    await asyncio.sleep(0.2)
    assert taken <= 4
    gate.set()
    assert (await feeder).size == 32 * MIB


async def test_a_slow_reader_holds_the_store_back(objects: FolderObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nobody takes chunks, only a few are read ahead."""
    await put(objects, bytes(32 * MIB))
    reads = 0
    real = os.pread

    def counted(*args: int) -> bytes:
        nonlocal reads
        reads += 1
        return real(*args)

    monkeypatch.setattr(os, "pread", counted)
    async with open_get(objects.sign_get(KEY)) as download:
        async for _ in download:
            await asyncio.sleep(0.1)
            break
    assert 1 <= reads <= 4


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After 2 MiB the disk is full, then has room again."""
    real, written = os.write, 0

    def write(fd: int, data: bytes) -> int:
        nonlocal written
        written += len(data)
        if 2 * MIB < written <= 4 * MIB:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    yield
    monkeypatch.undo()


@pytest.mark.usefixtures("full_disk")
async def test_a_full_disk_is_told_and_leaves_nothing(objects: FolderObjects, tmp_path: Path) -> None:
    """An upload that meets a full disk fails, also if its writer goes on, and leaves no bytes."""

    async def write_on() -> None:
        async with open_put(objects.sign_put(KEY)) as upload:
            for _ in range(16):
                with suppress(StoreUnavailable):
                    await upload.write(bytes(MIB))
            await upload.commit()

    with pytest.raises(StoreUnavailable, match="full"):
        await write_on()
    assert files_under(tmp_path / "store") == {tmp_path / "store" / "secret"}


async def test_a_cancelled_write_leaves_no_gap(objects: FolderObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is cancelled in `write` and goes on stores all that he gave, in order."""
    gate = Event()
    real = copy.write_all
    monkeypatch.setattr(file_put, "write_all", lambda fd, data: gate.wait(30) and real(fd, data))
    blocks = [bytes([number]) * MIB for number in range(8)]
    async with open_put(objects.sign_put(KEY)) as upload:
        for number, block in enumerate(blocks):
            if number == 3:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(upload.write(block), 0.05)
                gate.set()
            else:
                await upload.write(block)
        assert await upload.commit() == digest_of(b"".join(blocks))
    assert await get(objects.sign_get(KEY)) == b"".join(blocks)


async def test_a_cancelled_wait_leaves_its_job() -> None:
    """A job of a lane runs in its turn, also if who waits for it is cancelled before it began."""
    gate, ran = Event(), []
    lane = Lane()
    first = lane.submit(lambda: gate.wait(30))
    second = lane.submit(lambda: ran.append("second"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(landed(second), 0.01)
    gate.set()
    assert await landed(first)
    await landed(lane.submit(lambda: ran.append("third")))
    assert ran == ["second", "third"]


async def test_a_cancelled_upload_leaves_nothing(objects: FolderObjects, tmp_path: Path) -> None:
    """A task that is cancelled within an upload leaves no bytes and no open file."""
    began = asyncio.Event()

    async def feed() -> None:
        async with open_put(objects.sign_put(KEY)) as upload:
            while True:
                await upload.write(bytes(MIB))
                began.set()

    open_before = open_files()
    feeder = asyncio.create_task(feed())
    await began.wait()
    feeder.cancel()
    with pytest.raises(asyncio.CancelledError):
        await feeder
    assert files_under(tmp_path / "store") == {tmp_path / "store" / "secret"}
    assert open_files() == open_before
