"""Whether the disk to which runs write has been full: an application that did not look has lost what it wrote then."""

import asyncio
import os
from pathlib import Path

from gurney import clock

#: A disk with less room than this may have refused what an application wrote.
LEAST_FREE = 1 << 20
#: So may one that takes fewer files than these, however small.
LEAST_FILES = 256
#: Seconds between two looks.
PERIOD_S = 0.5


class Disk:
    """That of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        #: By the monotonic clock; None: it was never seen full.
        self._full_at: float | None = None

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(PERIOD_S)

    def look(self) -> None:
        """Note whether it is full now. Blocks for a moment."""
        if self._folder.is_dir() and _is_full(os.statvfs(self._folder)):
            self._full_at = clock.monotonic()

    async def look_again(self) -> None:
        """Look, where it was full a moment ago: it may be so still."""
        if self.was_full_since(clock.monotonic() - 2 * PERIOD_S):
            await asyncio.to_thread(self.look)

    def was_full_since(self, moment: float) -> bool:
        """Tell whether it was seen full since a moment of the monotonic clock."""
        return self._full_at is not None and self._full_at >= moment


def _is_full(room: os.statvfs_result) -> bool:
    # Where files are not counted, there are none and none free.
    return room.f_bavail * room.f_frsize < LEAST_FREE or (room.f_files > 0 and room.f_favail < LEAST_FILES)
