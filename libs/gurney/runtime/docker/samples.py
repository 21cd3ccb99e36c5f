"""Looks at what live runs use."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from gurney import clock
from gurney.errors import GurneyError
from gurney.runtime.docker import groups
from gurney.runtime.docker.daemon import Daemon
from gurney.runtime.docker.live import LiveRun

#: Between two looks at files, which cost next to nothing: what a run uses after the last look is not counted.
PERIOD_S = 0.2
#: Between two questions to the daemon, which keep it busy.
ASKING_PERIOD_S = 2.0


class Sampler:
    """One round after the other over all live runs, for as long as it runs."""

    def __init__(self, daemon: Daemon, live: Callable[[], Sequence[LiveRun]]) -> None:
        self._daemon = daemon
        self._live = live

    async def run(self) -> None:
        """Sample for ever. A run that is shorter than a period may never be seen."""
        asked = clock.monotonic()
        while True:
            await asyncio.sleep(PERIOD_S)
            unseen = await self._look(self._live())
            if unseen and clock.monotonic() - asked >= ASKING_PERIOD_S:
                for run in unseen:
                    with suppress(GurneyError):
                        await self._ask(run)
                asked = clock.monotonic()

    async def _look(self, runs: Sequence[LiveRun]) -> list[LiveRun]:
        """Sample all runs whose control groups this host shows; return the others."""
        if not runs:
            return []
        found = await self._daemon.aside(lambda: [groups.read(run.mark.container) for run in runs])
        unseen = []
        for run, used in zip(runs, found, strict=True):
            if used is None:
                unseen.append(run)
            else:
                run.sampled(used)
        return unseen

    async def _ask(self, run: LiveRun) -> None:
        container = run.mark.container
        stats = await self._daemon.slow(lambda client: client.stats(container, stream=False, one_shot=True))
        run.sampled(groups.told(stats))
