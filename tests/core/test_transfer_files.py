"""Local files into and out of a folder store, and how the store keeps itself to itself."""

import asyncio
import errno
import os
import stat
from pathlib import Path

import pytest

from gurney.errors import Forbidden, IntegrityError, Invalid, NotFound, StoreUnavailable
from gurney.objects.folder import FolderObjects
from gurney.transfer import fetch_to, open_put, put_file
from tests.core.folder_store import KEY, MIB, digest_of, files_under, get, put


async def test_a_copy_to_a_full_disk_leaves_nothing(
    objects: FolderObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`put_file` on a full disk stores nothing."""

    def write(_: int, __: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = tmp_path / "source"
    source.write_bytes(bytes(8 * MIB))
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(StoreUnavailable, match="full"):
        await put_file(source, objects.sign_put(KEY))
    assert files_under(tmp_path / "store") == {tmp_path / "store" / "secret"}


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
    while not (tmp_path / "target").exists():
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
