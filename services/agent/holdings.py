"""What this host holds of MAPs: images, copies of folders and what they bring along, as its heartbeats tell it.

Of what runs read besides nothing is held: an input is fetched for its run and goes with it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from itertools import chain, islice

from gurney import telemetry
from gurney.errors import GurneyError
from gurney.model.run import short

#: Returns digests, the last used first as far as it is known.
Source = Callable[[], Awaitable[Iterable[str]]]

#: Digests in a heartbeat: 4 KB.
MOST = 256
#: Seconds between two looks at what is there, if nothing is known to be new.
LOOK_EVERY_S = 60.0

_log = telemetry.log("agent")


class Holdings:
    """One per host. A source that does not answer has what it had."""

    def __init__(self, sources: Sequence[Source], pause_s: float) -> None:
        """`pause_s`: seconds between two looks at least: more than heartbeats tell need not be known."""
        self._sources = sources
        self._pause_s = pause_s
        self._found: list[list[str]] = [[] for _ in sources]
        self._stale = asyncio.Event()

    @property
    def told(self) -> tuple[str, ...]:
        """What heartbeats tell: short digests, always in the same order."""
        return tuple(sorted(islice(dict.fromkeys(chain(*self._found)), MOST)))

    def brought(self, digest: str) -> None:
        """Note that something is here: where that is news, look soon."""
        if not any(short(digest) in found for found in self._found):
            self._stale.set()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            self._stale.clear()
            await self.look()
            await asyncio.sleep(self._pause_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._stale.wait()

    async def look(self) -> None:
        """Ask each source once."""
        for number, source in enumerate(self._sources):
            try:
                self._found[number] = [short(digest) for digest in await source()]
            except (GurneyError, OSError) as error:
                _log.info("what is held of MAPs is not known", error=error)
