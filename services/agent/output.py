"""What a run has written: which files are carried home, and what must not be there. All of it blocks.

Links that stay inside the output stand for what they lead to, and are carried home as copies.
"""

import json
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from gurney.errors import Invalid
from gurney.paths import check_path

MAX_METADATA = 64 * 1024
MAX_METADATA_DEPTH = 32
METADATA = "metadata.json"
#: Of a larger one nobody looks whether it tells of a failure.
MAX_TELLING = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What an output may have, links followed; what goes past it is left behind."""

    #: Files, folders and links.
    entries: int = 1_000_000
    bytes: int = 64 << 30


@dataclass
class Output:
    """What was found."""

    limits: Limits = field(default_factory=Limits)

    #: Path in the payload -> the regular file that holds it.
    files: dict[str, Path] = field(default_factory=dict)
    #: Empty folders, each with `/` at its end.
    folders: list[str] = field(default_factory=list)
    #: The first thing that must not be there.
    fault: str | None = None
    #: Of all files.
    bytes: int = 0

    def add(self, path: str, real: str, size: int) -> None:
        """Take in a file, unless it is too much."""
        if self.bytes + size > self.limits.bytes:
            self.reject(path, f"with this file the output has more than {self.limits.bytes} bytes")
        else:
            self.bytes += size
            self.files[path] = Path(real)

    def reject(self, path: str, what: str) -> None:
        if self.fault is None:
            self.fault = f"{path.encode(errors='replace').decode()}: {what}"

    def __len__(self) -> int:
        return len(self.files) + len(self.folders)


@dataclass(frozen=True)
class _Folder:
    real: str
    #: In the payload: empty, or with `/` at its end.
    path: str
    #: The real folders that lead here, itself among them: a link to one of them would never end.
    chain: frozenset[str]


def look_through(root: Path, limits: Limits | None = None) -> Output:
    """Return what lies below `root`."""
    found = Output(limits or Limits())
    if root.is_symlink():
        found.reject(".", "the output folder was replaced by a link")
        return found
    if not root.is_dir():
        return found
    top = os.path.realpath(root)
    folders = [_Folder(top, "", frozenset({top}))]
    entries = 0
    while folders:
        folder = folders.pop()
        names = _names(folder.real)
        entries += len(names)
        if entries > found.limits.entries:
            found.reject(folder.path or ".", f"the output has more than {found.limits.entries} entries")
            break
        if not names and folder.path:
            found.folders.append(folder.path)
        folders += filter(None, (_enter(found, folder, name, top) for name in names))
    return found


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208  names, not paths: there may be many
    except PermissionError:
        Path(folder).chmod(stat.S_IRWXU)
        return os.listdir(folder)  # noqa: PTH208


def _enter(found: Output, folder: _Folder, name: str, top: str) -> _Folder | None:
    """Note one entry; return it where it is a folder to be looked through."""
    path, real = folder.path + name, f"{folder.real}/{name}"
    try:
        check_path(path)
    except Invalid as error:
        found.reject(path, str(error))
        return None
    status = os.lstat(real)
    if stat.S_ISLNK(status.st_mode):
        led = _follow(found, path, real, top)
        if led is None:
            return None
        real, status = led, os.lstat(led)
    if stat.S_ISDIR(status.st_mode):
        if real in folder.chain:
            found.reject(path, "the link leads round in a circle")
            return None
        return _Folder(real, f"{path}/", folder.chain | {real})
    if not stat.S_ISREG(status.st_mode):
        found.reject(path, "is neither a file nor a folder")
        return None
    if not status.st_mode & stat.S_IRUSR:
        with suppress(OSError):
            Path(real).chmod(stat.S_IMODE(status.st_mode) | stat.S_IRUSR)
    found.add(path, real, status.st_size)
    return None


def _follow(found: Output, path: str, real: str, top: str) -> str | None:
    """Return what a link leads to inside the output."""
    try:
        led = os.path.realpath(real, strict=True)
    except (OSError, ValueError):
        found.reject(path, "the link leads to nothing")
        return None
    if led != top and not led.startswith(f"{top}/"):
        found.reject(path, "the link leads out of the output")
        return None
    return led


def read_metadata(output: Output) -> dict[str, Any] | None:
    """Return the object in the output's `metadata.json`; None where it is none, or larger than a job keeps."""
    source = output.files.get(METADATA)
    if source is None or source.stat().st_size > MAX_METADATA:
        return None
    try:
        value = from_json(source.read_bytes(), allow_inf_nan=False)
        json.dumps(value, allow_nan=False)  # 1e400 is a number, and infinite when it is read
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and _depth(value) <= MAX_METADATA_DEPTH else None


def read_exception(output: Output) -> str | None:
    """Return what the output's `metadata.json` says under `exception`; None where it says nothing.

    That counts although the rest is not what a job keeps: too much, or not quite JSON, as Python writes NaN.
    """
    source = output.files.get(METADATA)
    if source is None or source.stat().st_size > MAX_TELLING:
        return None
    try:
        value = json.loads(source.read_bytes())
        told = value.get("exception") if isinstance(value, dict) else None
        return told if isinstance(told, str) or not told else json.dumps(told)
    except (ValueError, RecursionError):
        return None


def _depth(value: Any) -> int:
    """Return how deep the value nests; the parser has bounded it already."""
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, below), default=0)
