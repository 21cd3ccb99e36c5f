"""The data folder: its lock, its secrets, and where things lie in it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gurney.errors import AlreadyRunning, Invalid
from gurney.ids import new_secret


class DataFolder:
    """Everything that one embedded server keeps. Only its owner can read it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def documents(self) -> Path:
        return self.root / "documents.sqlite"

    @property
    def objects(self) -> Path:
        return self.root / "objects"

    @property
    def nats(self) -> Path:
        return self.root / "nats"

    @property
    def token(self) -> Path:
        """The administrator's token, mode 0600."""
        return self.root / "token"

    @property
    def address(self) -> Path:
        """The URL of the server that runs on this folder, while it runs."""
        return self.root / "url"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; raises `AlreadyRunning` while another server does, `Invalid` where it is somebody else's."""
        self._make()
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.read(descriptor, 32).decode().strip()
                raise AlreadyRunning(f"a server runs on {self.root} already (process {pid or 'unknown'})") from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def _make(self) -> None:
        """Make the folder, closed to others; one that is there must be empty or ours: its mode and files stay."""
        try:
            self.root.mkdir(parents=True, mode=0o700)
        except FileExistsError:
            if not (self.root / "lock").exists() and any(self.root.iterdir()):
                raise Invalid(f"{self.root} has files that are not of a Gurney server: give another --data") from None

    def secret(self, name: str, prefix: str = "") -> str:
        """Return a secret that stays: made at the first call, kept in a file that only the owner can read."""
        path = self.root / name
        if not path.exists():
            part = path.with_suffix(".part")
            part.unlink(missing_ok=True)
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(f"{prefix}{new_secret()}\n")
                file.flush()
                os.fsync(file.fileno())
            part.rename(path)
        return path.read_text().strip()
