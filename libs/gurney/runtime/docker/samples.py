"""Looks at the memory of runs that live for some time."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from gurney.errors import GurneyError
from gurney.runtime.docker.daemon import Daemon
from gurney.runtime.docker.live import LiveRun

PERIOD_S = 2.0


class Sampler:
    """One round after the other over all live runs, for as long as it runs."""

    def __init__(self, daemon: Daemon, live: Callable[[], Sequence[LiveRun]]) -> None:
        self._daemon = daemon
        self._live = live

    async def run(self) -> None:
        """Sample for ever. A run that is shorter than a period may never be seen."""
        while True:
            await asyncio.sleep(PERIOD_S)
            for run in self._live():
                with suppress(GurneyError):
                    await self._sample(run)

    async def _sample(self, run: LiveRun) -> None:
        container = run.mark.container
        stats = await self._daemon.slow(lambda client: client.stats(container, stream=False, one_shot=True))
        if (memory := resident(stats)) is not None:
            run.sampled(memory)


def resident(stats: Mapping[str, Any]) -> int | None:
    """Return the memory that processes hold, without the cache of files, in both versions of control groups."""
    told = (stats.get("memory_stats") or {}).get("stats") or {}
    if "total_rss" in told:
        return int(told["total_rss"])
    return int(told["anon"]) + int(told.get("shmem", 0)) if "anon" in told else None
