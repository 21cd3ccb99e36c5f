"""How a folder store lies on disk, and how an object becomes visible in it. All of it blocks: call it from a thread.

    <root>/secret                                   signs URLs, mode 0600
    <root>/tmp/<id>                                 what is being written
    <root>/objects/<two hex digits>/<owner>/<name>  the objects, mode 0400; the digits spread the owners

An object is written under `tmp`, synced, then linked to its place: `link` never replaces, so of two PUTs one wins.
After a crash there is nothing or the whole object in its place, and maybe a file in `tmp`, which `sweep` removes. An
owner's folder goes with its last object; a PUT that meets the gap makes it again.
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from gurney import ids
from gurney.errors import Conflict, GurneyError, NotFound, StoreUnavailable

_FULL = {errno.ENOSPC, errno.EDQUOT}
_TRIES = 100


@contextmanager
def translated() -> Iterator[None]:
    """Turn errors of the operating system into ours, with one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreUnavailable("the disk of the object store is full") from error
        raise StoreUnavailable(f"object store: {error.strerror or error}") from error


def path_of(root: Path, key: str) -> Path:
    """Return where the object of `key` lies."""
    owner, _, name = key.partition("/")
    return root / "objects" / hashlib.sha256(owner.encode()).hexdigest()[:2] / owner / name


@translated()
def prepare(root: Path) -> bytes:
    """Make what is missing of a store, see that it can link, and return its secret. Safe beside another who does it."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    root.chmod(0o700)
    (root / "tmp").mkdir(exist_ok=True, mode=0o700)
    (root / "objects").mkdir(exist_ok=True, mode=0o700)
    for number in range(256):
        (root / "objects" / f"{number:02x}").mkdir(exist_ok=True, mode=0o700)
    secret = read_secret(root)
    if secret is None:
        fresh = open_temp(root, mode=0o600)
        with suppress(FileExistsError), fresh:
            os.write(fresh.fd, ids.new_secret().encode())
            os.fsync(fresh.fd)
            (root / "secret").hardlink_to(fresh.path)
        secret = (root / "secret").read_bytes()
    for folder in (root / "objects", root):
        sync_folder(folder)
    return secret


def read_secret(root: Path) -> bytes | None:
    """Return the store's secret, None where there is no store."""
    try:
        return (root / "secret").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


class Temp:
    """A file on its way to become an object. What was not published goes when it is closed."""

    def __init__(self, root: Path, path: Path, fd: int) -> None:
        self.root = root
        self.path = path
        self.fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and remove its name under `tmp`."""
        os.close(self.fd)
        self.path.unlink(missing_ok=True)

    def publish(self, key: str) -> None:
        """Make the file durable, then visible as `key`; `Conflict` where an object lies there."""
        os.fsync(self.fd)
        target = path_of(self.root, key)
        _link(self.path, target)
        for folder in (target.parent, target.parent.parent):
            with suppress(FileNotFoundError):  # the object was deleted in this moment
                sync_folder(folder)


def open_temp(root: Path, mode: int = 0o400) -> Temp:
    """Return a fresh file of the store."""
    path = root / "tmp" / ids.new_id("upl")
    return Temp(root, path, os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode))


def _link(temp: Path, target: Path) -> None:
    for _ in range(_TRIES):
        with suppress(FileExistsError):  # `exist_ok` fails where the folder goes in the same moment
            target.parent.mkdir(mode=0o700)
        try:
            target.hardlink_to(temp)
        except FileExistsError:
            raise _taken() from None
        except FileNotFoundError:
            if not temp.exists():
                raise StoreUnavailable("the upload stood still for so long that it was swept away") from None
            continue  # a delete took the empty folder between the two steps
        return
    raise StoreUnavailable(f"{target.parent} cannot be kept in place")


def open_object(root: Path, key: str) -> int:
    """Return a file descriptor that reads the object."""
    try:
        return os.open(path_of(root, key), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise NotFound("no object lies under this key") from None


def refuse_taken(root: Path, key: str) -> None:
    """Raise `Conflict` where an object lies: early, before bytes are moved for nothing."""
    if path_of(root, key).exists():
        raise _taken()


def _taken() -> GurneyError:
    return Conflict("an object lies under this key, and objects are written once")


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
