"""Copies between local files and a folder store, each in one thread from open to end. All of it blocks.

Where the file system can share blocks (Btrfs, XFS) a copy is a clone. The hash is of what was written.
"""

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

from gurney.errors import IntegrityError, Invalid
from gurney.objects import layout
from gurney.objects.port import Digest
from gurney.objects.signed import admit

# Fits the second-level cache, so that the hash reads what the copy has just touched.
_BLOCK = 256 << 10
_FICLONE = 0x40049409
_CLONE_FROM = 4 << 20


class Stopped(Exception):
    """The copy was called off."""


def store(path: Path, url: str, stop: Event) -> Digest:
    """Copy a local file into the store."""
    with layout.translated():
        target = admit(url, "PUT")
        layout.refuse_taken(target.root, target.key)
    with open_regular(path) as source, layout.translated(), layout.open_temp(target.root) as temp:
        digest = _copy(source, temp.fd, stop)
        temp.publish(target.key)
    return digest


def fetch(url: str, path: Path, expected: Digest, mode: int, stop: Event) -> None:
    """Copy an object to a local file and hold it against what was expected."""
    with layout.translated():
        target = admit(url, "GET")
        source = layout.open_object(target.root, target.key)
    try:
        with replacing(path, mode) as copy:
            found = _copy(source, copy, stop)
            if found != expected:
                raise IntegrityError(
                    f"{target.key} is not what was stored: {found.size} bytes with SHA-256 {found.sha256}, "
                    f"where {expected.size} bytes with {expected.sha256} were expected"
                )
    finally:
        os.close(source)


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`, however many calls it takes."""
    written = os.write(fd, data)
    if written < len(data):
        rest = memoryview(data)[written:]
        while rest:
            rest = rest[os.write(fd, rest) :]


def _copy(source: int, target: int, stop: Event) -> Digest:
    cloned = _clone(source, target)
    if cloned:
        source = target
    size, sha256 = 0, hashlib.sha256()
    while data := os.read(source, _BLOCK):
        if stop.is_set():
            raise Stopped
        if not cloned:
            write_all(target, data)
        sha256.update(data)
        size += len(data)
    return Digest(size, sha256.hexdigest())


def _clone(source: int, target: int) -> bool:
    if os.fstat(source).st_size < _CLONE_FROM:
        return False
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:  # another file system, or one that cannot
        return False
    return True


@contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """Open a file for reading; `Invalid` where it is a link or no regular file."""
    try:
        # Not blocking: a pipe that nobody writes to would hold the thread for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            raise Invalid.field("path", f"{path.name} is no regular file") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Invalid.field("path", f"{path.name} is no regular file")
        yield fd
    finally:
        os.close(fd)


@contextmanager
def replacing(path: Path, mode: int) -> Iterator[int]:
    """Open a fresh file at `path`, with its folders; any error takes it away again."""
    path.unlink(missing_ok=True)
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, mode)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, flags, mode)
    try:
        yield fd
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise
    finally:
        os.close(fd)
