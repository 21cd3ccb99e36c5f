"""What MAPs bring along, kept on this host for the next run: `agent/content/<digest>`, read-only, whole or not there.

A run that needs one has a link to it in its work folder, and what has such a link stays. Of the others those go that
were used least recently, when all together are more than may be kept.
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from gurney.runtime.folder import remove_tree
from services.agent.folders import Work, size_of

#: Fills an empty folder; raises where that fails, or where it is not what was asked for.
Fill = Callable[[Path], Awaitable[None]]

_DRAFT = ".draft"


class Contents:
    """Those of one host. `limit`: bytes that are kept."""

    def __init__(self, folder: Path, work: Path, limit: int) -> None:
        self._folder = folder
        self._work = work
        self._limit = limit
        #: Two runs that need the same fetch it once.
        self._fetching: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def open(self) -> None:
        """Make the folder; what a crash left half-way goes. Blocks."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for draft in self._folder.glob(f"*{_DRAFT}"):
            remove_tree(draft)
        for each in self._surplus():
            remove_tree(each)

    async def bring(self, digest: str, work: Work, fill: Fill) -> None:
        """Have the content of this digest where the run finds it."""
        kept = self._folder / digest.rpartition(":")[2]
        async with self._fetching[kept.name]:
            if await asyncio.to_thread(_link, work, kept):
                return
            await self._fetch(kept, fill)
        await self._trim()

    async def _fetch(self, kept: Path, fill: Fill) -> None:
        draft = kept.with_suffix(_DRAFT)
        try:
            await asyncio.to_thread(draft.mkdir)
            await fill(draft)
            await asyncio.to_thread(draft.rename, kept)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(remove_tree, draft))
            raise

    async def _trim(self) -> None:
        """Let go of what is too much; a run that comes for it meanwhile waits, and fetches it again."""
        for each in await asyncio.to_thread(self._surplus):
            async with self._fetching[each.name]:
                if each.name not in await asyncio.to_thread(self._used):
                    await asyncio.to_thread(remove_tree, each)

    def _surplus(self) -> list[Path]:
        """Return what goes so that the others fit, least recently used first; what runs use stays."""
        found = [each for each in self._folder.iterdir() if each.suffix != _DRAFT]
        sizes = {each: size_of(each) for each in sorted(found, key=lambda each: each.stat().st_mtime_ns)}
        total, used, surplus = sum(sizes.values()), self._used(), []
        for each, size in sizes.items():
            if total > self._limit and each.name not in used:
                surplus.append(each)
                total -= size
        return surplus

    def _used(self) -> set[str]:
        used = set()
        for link in self._work.glob("*/content"):
            with suppress(OSError):  # its run is over
                used.add(link.readlink().name)
        return used


def _link(work: Work, kept: Path) -> bool:
    """Lead the run to what is kept, before anybody looks whether that is used; tell whether it is there already."""
    work.content.unlink(missing_ok=True)
    work.content.symlink_to(kept)
    try:
        os.utime(kept)
    except FileNotFoundError:
        return False
    return True
