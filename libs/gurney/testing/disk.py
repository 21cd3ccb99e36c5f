"""A disk of a few MiB for tests, which may be full: a file system in memory, mounted over a folder. Needs root."""

import os
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_FULL_WITHIN_S = 10.0


def missing() -> str | None:
    """Say what keeps this machine from having such disks, None when nothing does."""
    try:
        with tempfile.TemporaryDirectory() as folder, SmallDisk(Path(folder), 1 << 20):
            return None
    except (OSError, subprocess.SubprocessError) as error:
        return f"nothing can be mounted: {getattr(error, 'stderr', None) or error}".strip()


class SmallDisk:
    """One disk. What lies in it goes with it."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.size = size

    def fill(self) -> None:
        """Take away all the room that is left."""
        deadline = time.monotonic() + _FULL_WITHIN_S
        while (told := os.statvfs(self.folder)).f_bfree:
            try:
                self._resize((told.f_blocks - told.f_bfree) * told.f_frsize)
            except subprocess.CalledProcessError:  # it has grown meanwhile
                if time.monotonic() > deadline:
                    raise

    def empty(self) -> None:
        """Give the room back."""
        self._resize(self.size)

    def _resize(self, size: int) -> None:
        _run("mount", "-o", f"remount,size={size}", self.folder)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={self.size}", "gurney-test", self.folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _run("umount", "--lazy", self.folder)  # whatever was killed may still have a file open


def _run(*command: str | Path) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True)
