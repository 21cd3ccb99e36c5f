"""Movers over a folder store: verification, backpressure, and what a fault leaves behind."""

import asyncio
import errno
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event

import pytest

from gurney.errors import Forbidden, IntegrityError, Invalid, NotFound, RangeNotSatisfiable, StoreUnavailable
from gurney.objects import layout
from gurney.objects.folder import FolderObjects
from gurney.objects.port import Digest
from gurney.transfer import copy, fetch_to, file_put, open_get, open_put, put_file

MIB = 1 << 20
KEY = "pay_x/upl_y"


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[FolderObjects]:
    store = FolderObjects(tmp_path / "store")
    await store.open()
    yield store
    await store.close()


def digest_of(data: bytes) -> Digest:
    return Digest(len(data), hashlib.sha256(data).hexdigest())


async def put(objects: FolderObjects, data: bytes, key: str = KEY) -> Digest:
    async with open_put(objects.sign_put(key)) as upload:
        await upload.write(data)
        return await upload.commit()


async def get(url: str, *, offset: int = 0, length: int | None = None, expected: Digest | None = None) -> bytes:
    async with open_get(url, offset, length, expected) as download:
        return b"".join([chunk async for chunk in download])


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def files_under(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_writes_of_all_kinds_add_up(tmp_path: Path) -> None:
    """Chunks of any size and kind make one object, and a buffer may change once `write` has returned."""

    async def scenario() -> None:
        objects = FolderObjects(tmp_path)
        await objects.open()
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

    asyncio.run(scenario())


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


@pytest.mark.usefixtures("full_disk")
async def test_a_copy_to_a_full_disk_leaves_nothing(objects: FolderObjects, tmp_path: Path) -> None:
    """`put_file` on a full disk stores nothing."""
    source = tmp_path / "source"
    source.write_bytes(bytes(8 * MIB))
    with pytest.raises(StoreUnavailable, match="full"):
        await put_file(source, objects.sign_put(KEY))
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


@pytest.mark.parametrize("size", [0, 1, 5 * MIB + 3])
async def test_files_go_in_and_come_out(objects: FolderObjects, tmp_path: Path, size: int) -> None:
    """A stored local file comes back byte for byte, into folders that are made, over what lay there."""
    data = os.urandom(size)
    source, target = tmp_path / "source", tmp_path / "a" / "b" / "target"
    source.write_bytes(data)
    digest = await put_file(source, objects.sign_put(KEY))
    assert digest == digest_of(data)
    for _ in range(2):
        await fetch_to(objects.sign_get(KEY), target, digest)
        assert target.read_bytes() == data
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


async def test_a_fetch_verifies(objects: FolderObjects, tmp_path: Path) -> None:
    """A fetch of other bytes than expected leaves no file."""
    await put(objects, bytes(3 * MIB))
    with pytest.raises(IntegrityError):
        await fetch_to(objects.sign_get(KEY), tmp_path / "target", digest_of(b"other"))
    assert not (tmp_path / "target").exists()


async def test_a_fetch_does_not_follow_links(objects: FolderObjects, tmp_path: Path) -> None:
    """A link that lies at the target is replaced, what it points to stays."""
    digest = await put(objects, b"new")
    (tmp_path / "other").write_bytes(b"old")
    (tmp_path / "target").symlink_to(tmp_path / "other")
    await fetch_to(objects.sign_get(KEY), tmp_path / "target", digest)
    assert (tmp_path / "other").read_bytes() == b"old"
    assert (tmp_path / "target").read_bytes() == b"new"


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
async def test_only_regular_files_are_stored(objects: FolderObjects, tmp_path: Path, kind: str) -> None:
    """A link, a pipe or a folder is refused at once and stores nothing."""
    path = tmp_path / "source"
    if kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(Invalid, match="no regular file"):
        await put_file(path, objects.sign_put(KEY))
    assert await objects.stat(KEY) is None


async def test_a_cancelled_copy_has_ended(objects: FolderObjects, tmp_path: Path) -> None:
    """When a cancelled `fetch_to` returns, its thread is done and its file gone."""
    digest = await put(objects, bytes(64 * MIB))
    fetching = asyncio.create_task(fetch_to(objects.sign_get(KEY), tmp_path / "target", digest))
    while not (tmp_path / "target").exists():  # noqa: ASYNC110 - no event tells of a file
        await asyncio.sleep(0.001)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert not (tmp_path / "target").exists()


async def test_unknown_schemes_have_no_mover(objects: FolderObjects) -> None:
    """A URL of another scheme, or of no store, is refused with a reason."""
    with pytest.raises(Forbidden, match="gopher"):
        open_put("gopher://host/x")
    with pytest.raises(Forbidden, match="not one that this store signs"):
        await get("file:///etc/passwd")
    other = objects.sign_get(KEY).replace("/store/", "/nowhere/")
    with pytest.raises(Forbidden, match="not signed"):
        await get(other)


async def test_a_store_made_anew_has_its_own_secret(objects: FolderObjects, tmp_path: Path) -> None:
    """URLs of a store that was wiped are refused, those of its successor work in the same process."""
    old = objects.sign_get(KEY)
    with pytest.raises(NotFound):
        await get(old)
    (tmp_path / "store" / "secret").unlink()
    await objects.open()
    await put(objects, b"data")
    assert await get(objects.sign_get(KEY)) == b"data"
    with pytest.raises(Forbidden):
        await get(old)


async def test_nobody_else_may_look(objects: FolderObjects, tmp_path: Path) -> None:
    """Nothing in the store is open to other users, and a folder that was is closed."""
    await put(objects, b"data")
    (tmp_path / "store").chmod(0o755)
    await objects.open()
    for path in (tmp_path / "store", *(tmp_path / "store").rglob("*")):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


async def test_empty_folders_go(objects: FolderObjects, tmp_path: Path) -> None:
    """With its last object an owner's folder goes."""
    await put(objects, b"data")
    await objects.delete([KEY])
    assert list((tmp_path / "store" / "objects").glob("*/*")) == []


async def test_a_store_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    """Where a file lies in the way, `open` fails with one clear line."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreUnavailable, match="object store: Not a directory"):
        await FolderObjects(tmp_path / "file" / "store").open()
