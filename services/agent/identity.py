"""Who this agent is: its home, which outlives it, and its incarnation, which does not. Its folder is its alone."""

import asyncio
import fcntl
import os
from pathlib import Path
from typing import Self

from gurney.errors import AlreadyRunning
from gurney.ids import new_secret


class Identity:
    """A context: inside, no other agent works on the same folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = -1
        #: Of this start.
        self.incarnation = new_secret()
        #: Of the folder: it tells a restart from another host. Known inside.
        self.home = ""

    async def __aenter__(self) -> Self:
        """Take the folder; raises `AlreadyRunning`."""
        await asyncio.to_thread(self._take)
        return self

    async def __aexit__(self, *exc: object) -> None:
        os.close(self._lock)

    def _take(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)  # below it the inputs of runs lie open, for the users of images
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.home = self._home()
        except BlockingIOError:
            os.close(lock)
            raise AlreadyRunning(f"an agent runs on {self._folder} already") from None
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock

    def _home(self) -> str:
        path = self._folder / "home"
        if not path.exists():
            draft = path.with_suffix(".part")
            draft.write_text(new_secret())
            draft.replace(path)
        return path.read_text()
