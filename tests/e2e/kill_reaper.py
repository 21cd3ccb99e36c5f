"""Kills the server at chosen moments, starts it again, and says in which phases the kills fell.

The phases of a job: place (accepted, no placement), spawn (placed, the run has not begun), run, collect (the run is
over, the scheduler does not know), fold (it does, the job is not terminal), webhook (it is, the handler was not told).
Those of a request: body (bytes are under way), commit (the file is not acknowledged yet), accept (nor is the job).
"""

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

from tests.e2e import kill_checks as checks
from tests.e2e.kill_load import TERMINAL, Listener, Load
from tests.e2e.kill_server import Mortal
from tests.e2e.kill_watch import PHASES, Watch

#: A phase that does not come by then is not waited for.
_PATIENCE_S = 5.0


class Reaper:
    """Kills the server and starts it again; knows in which phases its kills fell."""

    def __init__(self, server: Mortal, load: Load, listener: Listener, starts: Path, rng: random.Random) -> None:
        self.watch = Watch()
        self.hits: Counter[str] = Counter()
        self.aimed: Counter[str] = Counter()
        self.faults: list[str] = []
        self._server = server
        self._load = load
        self._listener = listener
        self._starts = starts
        self._rng = rng
        self._following = AsyncExitStack()

    async def begin(self) -> None:
        await self._server.start()
        await self._following.enter_async_context(self.watch.following(self._server.nats))
        self.faults += await checks.eventually(self._server.twice, checks.ALONE_WITHIN_S)

    async def once(self, *, wipe: bool = False, supervisor: bool = False) -> None:
        """Kill at a moment of chance or of choice, and start again.

        `wipe`: with an empty JetStream; `supervisor`: the process that watches the runs dies, too.
        """
        aim = self._choose()
        self.aimed[aim or "any"] += 1
        await self._strike(aim)
        if supervisor:
            await asyncio.to_thread(self._server.strike_supervisors)
        await self.watch.settle()
        await self._server.bury()
        self.hits += Counter(await self._phases())
        await self._following.aclose()
        await self._server.leave()
        if wipe:
            await self._server.wipe()
        if self._rng.random() < 0.1 and await self._server.start_and_kill(self._rng.uniform(0, 1.5)):
            self.hits["start"] += 1
        await self.begin()

    def _choose(self) -> str | None:
        """Choose a phase, one that was hit seldom rather than another; None: any moment will do."""
        if self._rng.random() < 0.25:
            return None
        seldom = min(self.hits[phase] for phase in PHASES)
        if self._rng.random() < 0.4:
            return self._rng.choice([phase for phase in PHASES if self.hits[phase] == seldom])
        return self._rng.choice(PHASES)

    async def _strike(self, aim: str | None) -> None:
        await asyncio.sleep(self._rng.uniform(0, 0.8 if aim is None else 0.4))
        struck = asyncio.Event()
        delay = self._rng.choice([0.0, 0.0, self._rng.uniform(0, 0.005), self._rng.uniform(0, 0.05)])

        def strike() -> None:
            if not struck.is_set():
                self._server.strike()
                struck.set()

        if aim:
            loop = asyncio.get_running_loop()
            self.watch.at_next(aim, strike if delay == 0 else lambda: loop.call_later(delay, strike))
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await struck.wait()
            except TimeoutError:
                self.watch.forget()
        strike()

    async def _phases(self) -> set[str]:
        """Return the phases in which something was when the server died: often several."""
        moving = {which for which, file in self._load.files.items() if file.moving}
        found = {"commit" for which in moving & self.watch.committing}
        found |= {"body" for which in (moving & self.watch.begun) - self.watch.committing}
        found |= {"accept" for job in self._load.jobs.values() if job.asking and job.key in self.watch.creating}
        lines = {(job, what) for job, _, _, what in await asyncio.to_thread(checks.lines_of, self._starts)}
        for job, state, placement in await self._server.jobs():
            phase = _phase(state, placement, {what for what in ("start", "end") if (job, what) in lines})
            if phase != "webhook" or not self._listener.of(job):
                found.add(phase)
        return found

    async def end(self) -> None:
        await self._following.aclose()

    def table(self) -> str:
        rows = [f"{phase:>8} {self.hits[phase]:5} {self.aimed[phase]:5}" for phase in (*PHASES, "any", "start")]
        return "\n".join(["   phase kills aimed", *rows])


def _phase(state: str, placement: str | None, wrote: set[str]) -> str:
    """Return the phase of a job, by its document, that of its placement, and what its run wrote."""
    if state in TERMINAL:
        return "webhook"
    if placement == "ended":
        return "fold"
    if placement is None:
        return "place"
    return "collect" if "end" in wrote else "run" if "start" in wrote else "spawn"
