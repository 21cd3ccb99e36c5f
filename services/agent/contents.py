"""What MAPs bring along, kept on this host for the next run: `agent/content/<digest>`, read-only, whole or not there.

A run that needs one has a link to it in its work folder, and what has such a link stays. Of the others those go that
were used least recently, when all together are more than may be kept, and those that nobody needs any more.
"""

import asyncio
import itertools
import os
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from gurney import telemetry
from gurney.runtime.folder import remove_tree, sync
from services.agent.folders import Work, size_of

#: Fills an empty folder; raises where that fails, or where it is not what was asked for.
Fill = Callable[[Path], Awaitable[None]]

#: What is not whole has a suffix: this one, or a number where it is going.
_DRAFT = ".draft"


class Contents:
    """Those of one host. `limit`: bytes that are kept."""

    def __init__(self, folder: Path, work: Path, limit: int) -> None:
        self._folder = folder
        self._work = work
        self._limit = limit
        self._numbers = itertools.count()
        #: Two runs that need the same fetch it once.
        self._fetching: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def open(self) -> None:
        """Make the folder; what a crash left half-way goes. Blocks."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob("*.*"):
            remove_tree(left)
        for each in self._surplus():
            self._remove(each)

    def path(self, digest: str) -> Path:
        """Return where the content of this digest lies, once a run has it."""
        return self._folder / digest.rpartition(":")[2]

    async def bring(self, digest: str, work: Work, fill: Fill) -> None:
        """Have the content of this digest where the run finds it."""
        kept = self.path(digest)
        async with self._fetching[kept.name]:
            if await asyncio.to_thread(_link, work, kept):
                telemetry.CONTENTS.labels("kept").inc()
                return
            await self._fetch(kept, fill)
            telemetry.CONTENTS.labels("fetched").inc()
        await self._trim()

    async def digests(self) -> list[str]:
        """Return what is kept."""
        return [f"sha256:{each.name}" for each in await asyncio.to_thread(self._kept)]

    async def let_go(self, digest: str) -> bool:
        """Remove the content of this digest, unless a run has it; tell whether it went."""
        kept = self.path(digest)
        async with self._fetching[kept.name]:
            return kept.name not in await asyncio.to_thread(self._used) and await asyncio.to_thread(self._remove, kept)

    async def _fetch(self, kept: Path, fill: Fill) -> None:
        draft = kept.with_suffix(_DRAFT)
        try:
            await asyncio.to_thread(draft.mkdir)
            await fill(draft)
            await asyncio.to_thread(_publish, draft, kept)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(remove_tree, draft))
            raise

    async def _trim(self) -> None:
        """Let go of what is too much; a run that comes for it meanwhile waits, and fetches it again."""
        with suppress(FileNotFoundError):  # another lets go of it: nothing of that is this run's concern
            for each in await asyncio.to_thread(self._surplus):
                await self.let_go(each.name)

    def _remove(self, kept: Path) -> bool:
        """Remove it, at once for everybody who looks: a crash leaves nothing half under its name."""
        going = kept.with_suffix(f".{next(self._numbers)}")  # one that goes for long may be fetched anew
        try:
            kept.rename(going)
        except FileNotFoundError:
            return False
        remove_tree(going)
        return True

    def _kept(self) -> list[Path]:
        return [each for each in self._folder.iterdir() if not each.suffix]

    def _surplus(self) -> list[Path]:
        """Return what goes so that the others fit, least recently used first; what runs use stays."""
        sizes = {each: size_of(each) for each in sorted(self._kept(), key=lambda each: each.stat().st_mtime_ns)}
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


def _publish(draft: Path, kept: Path) -> None:
    """Give it its name once it is on disk: nobody looks again whether it is whole, also after a power cut."""
    for each in (draft, *draft.rglob("*")):
        sync(each)
    draft.rename(kept)
    sync(kept.parent)


def _link(work: Work, kept: Path) -> bool:
    """Lead the run to what is kept, before anybody looks whether that is used; tell whether it is there already."""
    work.content.unlink(missing_ok=True)
    work.content.symlink_to(kept)
    try:
        os.utime(kept)
    except FileNotFoundError:
        return False
    return True
