"""Lets go of what the host keeps of MAPs that nobody needs any more: copies of folder MAPs, and what MAPs bring along.

The host asks the MAP service about what none of its runs has in hand. Where nobody answers, all stays.
"""

import asyncio
from collections.abc import Sequence

from gurney import clock, telemetry
from gurney.errors import GurneyError
from gurney.model.common import Digests
from gurney.runtime.port import Runtime
from gurney.subjects import MAP_NEEDED
from services.agent import policy
from services.agent.host import Host
from services.agent.supervisor import Supervisor

#: Digests in one message.
BATCH = 256
#: For how many questions' time nobody has to need a copy. A job that is being made of a MAP which was there a moment
#: ago is stored within less, and needs it from then on.
QUESTIONS = 6

_log = telemetry.log("agent")


class Sweep:
    """One per start of the agent; what it knew before is asked for again."""

    def __init__(self, host: Host, supervisor: Supervisor, runtimes: Sequence[Runtime]) -> None:
        self._host = host
        self._supervisor = supervisor
        self._runtimes = tuple(runtimes)
        self._interval = host.settings.reconcile_interval
        self._grace_s = QUESTIONS * host.settings.request_timeout
        #: When was asked about each copy that nobody has needed since.
        self._idle: dict[str, float] = {}

    async def sweep(self) -> None:
        """Look for ever; at first after a while, as the others start, too."""
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.look()
            except (GurneyError, OSError) as error:
                _log.info("copies are not looked at", error=error)

    async def look(self) -> None:
        """Ask once, and let go of what nobody has needed for long enough."""
        asked_at = clock.monotonic()  # first: who comes for a copy from now on keeps it
        idle = await self._kept() - self._supervisor.digests
        needed = await self._needed(sorted(idle))
        self._idle = policy.idle_since(idle - needed, self._idle, asked_at)
        for digest in policy.long_idle(self._idle, asked_at - self._grace_s):
            await self._let_go(digest, self._idle.pop(digest))

    async def _kept(self) -> set[str]:
        kept = set(await self._host.contents.digests())
        for runtime in self._runtimes:
            kept |= set(await runtime.copies())
        return kept

    async def _needed(self, digests: Sequence[str]) -> set[str]:
        needed: set[str] = set()
        for start in range(0, len(digests), BATCH):
            batch = Digests(digests=tuple(digests[start : start + BATCH]))
            needed |= set((await self._host.bus.request(MAP_NEEDED, batch)).digests)
        return needed

    async def _let_go(self, digest: str, idle_since: float) -> None:
        if digest in self._supervisor.digests:
            return
        gone = [await runtime.let_go(digest, idle_since) for runtime in self._runtimes]
        if any([*gone, await self._host.contents.let_go(digest)]):
            _log.info("a copy went that nobody needs any more", digest=digest)
