"""Folder MAPs: finding them, pinning them by digest, and keeping read-only copies under it.

The digest is `sha256:` and the SHA-256 over one record for each entry below the folder, sorted by the bytes of its
path: kind (`d` folder, `f` file, `x` file that its owner may execute, `l` symbolic link), a space, the length of the
path in bytes, a space, the path (relative, `/` between its parts), a space, the SHA-256 of the content in hexadecimal
(of nothing for a folder, of the target for a link), a newline. Times, owners and the other mode bits do not count, and
folders named `__pycache__` are left out, since running the MAP in place would change them.

Everything here blocks: call it in a thread.
"""

import errno
import hashlib
import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from gurney.errors import MapUnreadable, StoreUnavailable

URN_PREFIX = "urn:gurney:dir:"
MANIFESTS = ("app.json", "pkg.json")
MANIFEST_LIMIT = 128 * 1024
_TEMPORARY = ".copy-"
_ATTEMPTS = 3


def resolve(maps_dir: Path | None, urn: str) -> Path:
    """Return the folder that the URN names, or raise `MapUnreadable`."""
    if maps_dir is None:
        raise MapUnreadable("no_runtime", "This server has no folder of local MAPs")
    name = urn.removeprefix(URN_PREFIX)
    if not urn.startswith(URN_PREFIX) or not name or name.startswith(".") or "/" in name or not name.isprintable():
        raise MapUnreadable("bad_urn", f"{urn!r} does not name a folder of the local MAPs")
    path = maps_dir / name
    try:
        inside = path.resolve(strict=True).parent == maps_dir.resolve()
    except (OSError, RuntimeError):
        raise MapUnreadable("not_found", f"There is no local MAP {name!r}") from None
    if not inside:
        raise MapUnreadable("link_outside", f"{name!r} leads out of the folder of local MAPs")
    if not path.is_dir():
        raise MapUnreadable("not_found", f"{name!r} is not a folder")
    return path


def digest_of(root: Path) -> str:
    """Return the digest of a folder as the module describes it."""
    whole = hashlib.sha256()
    for kind, path in _entries(root):
        name = os.fsencode(path.relative_to(root).as_posix())
        whole.update(b"%b %d %b %b\n" % (kind, len(name), name, _content_digest(kind, path)))
    return f"sha256:{whole.hexdigest()}"


def copy_path(copies: Path, digest: str) -> Path:
    """Return where the copy of this digest lies; no colon in it, so that it may stand in PATH-like variables."""
    return copies / digest.removeprefix("sha256:")


def aside(copy: Path) -> Path:
    """Return where a copy lies that is being removed, as what is unfinished does."""
    return copy.with_name(_TEMPORARY + copy.name)


def pin(source: Path, copies: Path, is_there: Callable[[Path], bool] = Path.is_dir) -> tuple[str, dict[str, bytes]]:
    """Copy the folder under its digest unless it is there; return digest and manifests, read from the copy.

    Raises `MapUnreadable` for what is wrong with the folder, `StoreUnavailable` where there is no room for the copy.
    """
    try:
        _check_manifest_sizes(source)
        for _ in range(_ATTEMPTS):
            digest = digest_of(source)
            copy = copy_path(copies, digest)
            if is_there(copy) or _copy(source, copies, digest):
                return digest, _manifests(copy)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS}:
            raise StoreUnavailable(f"The MAP cannot be copied: {error.strerror}") from error
        raise MapUnreadable("unreadable", f"{source.name!r} cannot be read: {error.strerror}") from error
    raise MapUnreadable("changing", f"{source.name!r} changes while it is being copied")


def clear_temporaries(copies: Path) -> None:
    """Remove what a crash left of unfinished copies; nobody else may be copying."""
    for left in copies.glob(f"{_TEMPORARY}*"):
        remove_tree(left)


def remove_tree(root: Path) -> None:
    """Remove a tree whose folders may be closed to us, or nest without end; a missing one is no error."""
    if root.is_symlink() or not root.is_dir():
        root.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(root)
    except (OSError, RecursionError):
        with suppress(OSError):
            _level(root)
        shutil.rmtree(root, ignore_errors=True)


def _level(root: Path) -> None:
    """Open every folder of the tree and bring it to the top: some are closed to us, some deeper than a path reaches."""
    root.chmod(stat.S_IRWXU)
    top = Path(tempfile.mkdtemp(dir=root))
    numbers = itertools.count()
    folders = [root]
    while folders:
        for path in folders.pop().iterdir():
            with suppress(OSError):
                if path.is_dir() and not path.is_symlink() and path != top:
                    path.chmod(stat.S_IRWXU)
                    folders.append(path.rename(top / str(next(numbers))))


def _entries(root: Path) -> Iterator[tuple[bytes, Path]]:
    found: list[Path] = []
    for folder, folders, files in os.walk(root, onerror=_fail):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found += [Path(folder) / name for name in (*folders, *files)]
    for path in sorted(found, key=lambda each: os.fsencode(each.relative_to(root).as_posix())):
        yield _kind(root, path), path


def _fail(error: OSError) -> None:
    raise error


def _kind(root: Path, path: Path) -> bytes:
    mode = path.lstat().st_mode
    if stat.S_ISDIR(mode):
        return b"d"
    if stat.S_ISREG(mode):
        return b"x" if mode & stat.S_IXUSR else b"f"
    name = path.relative_to(root)
    if not stat.S_ISLNK(mode):
        raise MapUnreadable("special_file", f"{name} is neither a file nor a folder")
    target = path.readlink()
    if target.is_absolute() or not path.parent.joinpath(target).resolve().is_relative_to(root.resolve()):
        raise MapUnreadable("link_outside", f"The link {name} leads out of the MAP's folder")
    return b"l"


def _content_digest(kind: bytes, path: Path) -> bytes:
    if kind == b"l":
        digest = hashlib.sha256(os.fsencode(path.readlink()))
    elif kind == b"d":
        digest = hashlib.sha256()
    else:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    return digest.hexdigest().encode()


def _check_manifest_sizes(source: Path) -> None:
    size = 0
    for name in MANIFESTS:
        with suppress(OSError):
            size += (source / name).stat().st_size
    if size > MANIFEST_LIMIT:
        raise MapUnreadable("manifest_too_large", f"The manifests have {size} bytes, {MANIFEST_LIMIT} are allowed")


def _manifests(copy: Path) -> dict[str, bytes]:
    return {name: (copy / name).read_bytes() for name in MANIFESTS if (copy / name).is_file()}


def _copy(source: Path, copies: Path, digest: str) -> bool:
    """Make the copy appear whole under `digest`; False where the source has changed meanwhile."""
    copies.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=copies))
    try:
        _fill(source, draft)
        if digest_of(draft) != digest:
            return False
        _publish(draft, copy_path(copies, digest))
    finally:
        remove_tree(draft)
    return True


def _fill(source: Path, draft: Path) -> None:
    folders = [draft]
    for kind, path in _entries(source):
        to = draft / path.relative_to(source)
        if kind == b"d":
            to.mkdir()
            folders.append(to)
        elif kind == b"l":
            to.symlink_to(path.readlink())
        else:
            shutil.copyfile(path, to, follow_symlinks=False)
            to.chmod(0o555 if kind == b"x" else 0o444)
            sync(to)
    for folder in reversed(folders):
        sync(folder)
        folder.chmod(0o555)


def _publish(draft: Path, copy: Path) -> None:
    try:
        draft.rename(copy)
    except OSError:
        if not copy.is_dir():  # else somebody was faster with the same content
            raise
    sync(copy.parent)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
