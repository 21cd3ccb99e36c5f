"""Folder MAPs: what the digest counts, what is refused, and what a copy is."""

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from gurney.errors import MapUnreadable
from gurney.runtime import folder


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """A folder of local MAPs with one MAP `app`."""
    app = tmp_path / "maps" / "app"
    (app / "models").mkdir(parents=True)
    (app / "app.json").write_text('{"command": "python3 app.py"}')
    (app / "pkg.json").write_text("{}")
    (app / "app.py").write_text("print(1)\n")
    (app / "run").write_text("#!/bin/sh\n")
    (app / "run").chmod(0o755)
    (app / "models" / "weights").write_bytes(bytes(1000))
    (app / "latest").symlink_to("models/weights")
    return tmp_path / "maps"


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """The folder of the copies."""
    return tmp_path / "copies"


def test_digest_is_fixed(tmp_path: Path) -> None:
    """The digest of a known folder is known: it pins MAPs over releases and hosts."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"content")
    assert folder.digest_of(tmp_path / "a") == "sha256:5401f2d85a42ce84f7df7c8350dc45190fadc370813262b9e8810fdf29be3438"


def change_content(app: Path) -> None:
    (app / "app.py").write_text("print(2)\n")


def change_mode(app: Path) -> None:
    (app / "app.py").chmod(0o755)


def change_path(app: Path) -> None:
    (app / "app.py").rename(app / "main.py")


def move_down(app: Path) -> None:
    (app / "app.py").rename(app / "models" / "app.py")


def add_empty_folder(app: Path) -> None:
    (app / "cache").mkdir()


def change_link(app: Path) -> None:
    (app / "latest").unlink()
    (app / "latest").symlink_to("models")


def replace_link(app: Path) -> None:
    (app / "latest").unlink()
    (app / "latest").write_bytes(bytes(1000))


def nest(app: Path) -> None:
    (app / "models" / "weights").unlink()
    (app / "models" / "weights").mkdir()


CHANGES = [change_content, change_mode, change_path, move_down, add_empty_folder, change_link, replace_link, nest]


@pytest.mark.parametrize("change", CHANGES)
def test_digest_sees(maps: Path, change: Callable[[Path], None]) -> None:
    """Content, executable bit, path, folders and links all count."""
    before = folder.digest_of(maps / "app")
    change(maps / "app")
    assert folder.digest_of(maps / "app") != before


def test_digest_does_not_see(maps: Path) -> None:
    """Times, other mode bits and compiled Python do not count."""
    app = maps / "app"
    before = folder.digest_of(app)
    os.utime(app / "app.py", (0, 0))
    (app / "app.py").chmod(0o600)
    (app / "__pycache__").mkdir()
    (app / "__pycache__" / "app.pyc").write_bytes(b"compiled")
    assert folder.digest_of(app) == before


def test_copy_is_whole_and_read_only(maps: Path, copies: Path) -> None:
    """The copy has the digest it lies under, nothing in it may be written, and the manifests are its own."""
    digest, manifests = folder.pin(maps / "app", copies)
    copy = folder.copy_path(copies, digest)
    assert folder.digest_of(copy) == digest
    assert manifests == {"app.json": b'{"command": "python3 app.py"}', "pkg.json": b"{}"}
    modes = {path: path.lstat().st_mode for path in [copy, *copy.rglob("*")] if not path.is_symlink()}
    assert [path for path, mode in modes.items() if mode & 0o222] == []
    assert os.access(copy / "run", os.X_OK)
    assert ":" not in copy.name


def test_copy_is_made_once(maps: Path, copies: Path) -> None:
    """Pinning again leaves the copy as it is, and a change of the source makes another one beside it."""
    first, _ = folder.pin(maps / "app", copies)
    inode = folder.copy_path(copies, first).stat().st_ino
    assert folder.pin(maps / "app", copies)[0] == first
    change_content(maps / "app")
    second, _ = folder.pin(maps / "app", copies)
    assert folder.copy_path(copies, first).stat().st_ino == inode
    assert (folder.copy_path(copies, second) / "app.py").read_text() == "print(2)\n"
    assert len(list(copies.iterdir())) == 2


def test_missing_manifests_are_left_to_the_reader(maps: Path, copies: Path) -> None:
    """A folder without manifests can be pinned: its description may be supplied."""
    (maps / "app" / "app.json").unlink()
    assert set(folder.pin(maps / "app", copies)[1]) == {"pkg.json"}


@pytest.mark.parametrize(("size", "fits"), [(128 * 1024 - 2, True), (128 * 1024 - 1, False)])
def test_manifests_are_bounded(maps: Path, copies: Path, size: int, *, fits: bool) -> None:
    """Both manifests together may have 128 KiB, and not one byte more."""
    (maps / "app" / "app.json").write_bytes(b" " * size)
    if fits:
        folder.pin(maps / "app", copies)
        return
    with pytest.raises(MapUnreadable) as told:
        folder.pin(maps / "app", copies)
    assert told.value.reason == "manifest_too_large"
    assert not copies.exists()


@pytest.mark.parametrize("target", ["/etc/passwd", "../other", "models/../../other", "models/weights/../../../x"])
def test_links_out_of_the_folder_are_refused(maps: Path, copies: Path, target: str) -> None:
    """A link that leads out of the MAP is refused, whether its target exists or not."""
    (maps / "other").mkdir()
    (maps / "app" / "models" / "link").symlink_to(f"../{target}" if target.startswith("..") else target)
    (maps / "app" / "top").symlink_to(target)
    with pytest.raises(MapUnreadable) as told:
        folder.pin(maps / "app", copies)
    assert told.value.reason == "link_outside"


def test_special_files_are_refused(maps: Path, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket or pipe in a MAP is refused instead of being read for ever."""
    monkeypatch.chdir(maps / "app")
    with socket.socket(socket.AF_UNIX) as special:
        special.bind("special")
        with pytest.raises(MapUnreadable) as told:
            folder.pin(maps / "app", copies)
    assert told.value.reason == "special_file"


@pytest.mark.parametrize(
    ("urn", "reason"),
    [
        ("urn:gurney:dir:", "bad_urn"),
        ("urn:gurney:dir:..", "bad_urn"),
        ("urn:gurney:dir:.", "bad_urn"),
        ("urn:gurney:dir:../maps/app", "bad_urn"),
        ("urn:gurney:dir:app/models", "bad_urn"),
        ("urn:gurney:dir:/etc", "bad_urn"),
        ("urn:gurney:dir:a\0b", "bad_urn"),
        ("urn:oci:app", "bad_urn"),
        ("urn:gurney:dir:nothing", "not_found"),
        ("urn:gurney:dir:file", "not_found"),
        ("urn:gurney:dir:outside", "link_outside"),
        ("urn:gurney:dir:loop", "not_found"),
    ],
)
def test_only_folders_of_the_local_maps_are_found(maps: Path, urn: str, reason: str) -> None:
    """A name that leads elsewhere is refused, and one that leads nowhere is told as such."""
    (maps / "file").write_text("")
    (maps / "outside").symlink_to(maps.parent)
    (maps / "loop").symlink_to("loop")
    with pytest.raises(MapUnreadable) as told:
        folder.resolve(maps, urn)
    assert told.value.reason == reason


def test_no_folder_of_local_maps() -> None:
    """Without a folder of local MAPs there is no runtime for such a URN."""
    with pytest.raises(MapUnreadable) as told:
        folder.resolve(None, "urn:gurney:dir:app")
    assert told.value.reason == "no_runtime"


def test_unfinished_copies_are_cleared(maps: Path, copies: Path) -> None:
    """What a crash left of a copy is removed, read-only or not, and whole copies stay."""
    digest, _ = folder.pin(maps / "app", copies)
    left = copies / ".copy-left" / "models"
    left.mkdir(parents=True)
    left.chmod(stat.S_IRUSR | stat.S_IXUSR)
    folder.clear_temporaries(copies)
    assert [path.name for path in copies.iterdir()] == [digest.removeprefix("sha256:")]
