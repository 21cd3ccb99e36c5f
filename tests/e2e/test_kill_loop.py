"""SIGKILL of the whole server, again and again, at moments of every phase: nothing that was acknowledged is lost.

`GURNEY_SEED` repeats the choices of a run. Moments are steered from outside: a kill comes with the message that begins
a phase, or a little later, or at any time, or while the server starts.
"""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gurney.testing.embedded import EmbeddedProcess
from tests.e2e import kill_checks as checks
from tests.e2e.kill_load import ENDS, Listener, Load, make_maps
from tests.e2e.kill_server import MortalServer
from tests.e2e.kill_watch import PHASES, Watch

#: Profile -> kills with JetStream kept, and with its folder wiped.
KILLS = {"quick": (10, 10), "ci": (50, 20), "long": (200, 200)}
#: Rounds come often, so that the end of the test does not wait for them.
ENVIRONMENT = {"GURNEY_RECONCILE_INTERVAL": "2", "GURNEY_CPU": "4", "GURNEY_STOP_GRACE": "1"}
#: A phase that does not come by then is not waited for.
_PATIENCE_S = 5.0


class Reaper:
    """Kills the server and starts it again; knows in which phases its kills fell."""

    def __init__(self, server: MortalServer, load: Load, listener: Listener, starts: Path, rng: random.Random) -> None:
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
        await self._following.enter_async_context(self.watch.following(self._server.data))
        self.faults += checks.one_nats_server(self._server.data, "after a start")

    async def once(self, *, wipe: bool) -> None:
        """Kill at a moment of chance or of choice, wipe JetStream if asked to, and start again."""
        aim = self._choose()
        self.aimed[aim or "any"] += 1
        await self._strike(aim)
        await self.watch.settle()
        hits = self._phases()
        self.hits += Counter(hits)
        await self._server.bury()
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

    def _phases(self) -> set[str]:
        """Return the phases in which something was when the server died."""
        moving = {which for which, file in self._load.files.items() if file.moving}
        found = {"commit" for which in moving & self.watch.committing}
        found |= {"body" for which in (moving & self.watch.begun) - self.watch.committing}
        found |= {"accept" for job in self._load.jobs.values() if job.asking and job.key in self.watch.creating}
        lines = {(job, what) for job, _, _, what in checks.lines_of(self._starts)}
        return found | {phase for job in self.watch.jobs["place"] if (phase := self._phase(job, lines))}

    def _phase(self, job: str, lines: set[tuple[str, str]]) -> str | None:
        """Return the phase of a job that was accepted, None where all is over."""
        seen = self.watch.jobs
        over = {
            "webhook": job in self._listener.told,
            "fold": job in seen["webhook"],
            "collect": job in seen["fold"],
            "run": (job, "end") in lines,
            "spawn": (job, "start") in lines,
            "place": job in seen["spawn"],
        }
        return next((_AFTER[phase] for phase, is_over in over.items() if is_over), "place")

    async def end(self) -> None:
        await self._following.aclose()

    def table(self) -> str:
        rows = [f"{phase:>8} {self.hits[phase]:5} {self.aimed[phase]:5}" for phase in (*PHASES, "any", "start")]
        return "\n".join(["   phase kills aimed", *rows])


_AFTER = {"webhook": None, "fold": "webhook", "collect": "fold", "run": "collect", "spawn": "run", "place": "spawn"}


@pytest.fixture
def seed() -> int:
    return int(os.environ.get("GURNEY_SEED") or random.SystemRandom().randrange(2**32))


@pytest.fixture
def starts(tmp_path: Path) -> Path:
    return tmp_path / "starts"


@pytest.fixture
async def mortal(tmp_path: Path, starts: Path) -> AsyncIterator[MortalServer]:
    """A server that is not started yet."""
    (tmp_path / "maps").mkdir()
    maps = make_maps(tmp_path / "maps", starts)
    server = MortalServer(EmbeddedProcess(tmp_path / "data", maps, ENVIRONMENT))
    yield server
    await server.stop()


async def _prepare(server: MortalServer, listener: Listener, url: str) -> None:
    for kind in ENDS:
        asked = {"urn": f"urn:gurney:dir:{kind}", "name": kind}
        made = await server.insist("POST", "/v1/maps", json=asked, headers={"Idempotency-Key": kind})
        async with asyncio.timeout(checks.MADE_UP_WITHIN_S):
            while (await server.insist("GET", f"/v1/maps/{made.json['id']}")).json["state"] != "ready":
                await asyncio.sleep(0.05)
    handler = await server.insist("POST", "/v1/handlers", json={"url": url})
    listener.secret = handler.json["secret"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("wipes", [pytest.param(False, id="kept"), pytest.param(True, id="wiped")])
async def test_kills(
    *,
    wipes: bool,
    seed: int,
    mortal: MortalServer,
    starts: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whenever the server is killed, accepted jobs run once and end, acknowledged files stay, and nothing else does."""
    count = int(os.environ.get("GURNEY_KILLS") or KILLS[request.config.getoption("--profile")][wipes])
    with capsys.disabled():
        print(f"\nGURNEY_SEED={seed}, {count} kills, JetStream {'wiped at half of them' if wipes else 'kept'}")
    rng = random.Random(seed)
    load, listener = Load(mortal, seed), Listener()
    reaper = Reaper(mortal, load, listener, starts, rng)
    began = time.monotonic()
    async with listener.listening() as url:
        await reaper.begin()
        await _prepare(mortal, listener, url)
        async with load.running():
            for number in range(count):
                await reaper.once(wipe=wipes and number % 2 == 0)
            for _ in range(count // 2):  # a phase that was never hit is tried a few times more
                if all(reaper.hits[phase] for phase in PHASES):
                    break
                await reaper.once(wipe=False)
        killed = time.monotonic()
        faults = reaper.faults + await checks.eventually(lambda: checks.stuck(mortal))
        faults += await checks.eventually(lambda: checks.untold(load, listener))
        faults += await checks.jobs_are_right(mortal, load, starts)
        faults += await checks.results_are_right(mortal, load)
        faults += await checks.files_are_right(mortal, load)
        faults += await checks.eventually(lambda: checks.unsettled(mortal.data))
        faults += checks.one_nats_server(mortal.data, "before the stop")
        await reaper.end()
        assert await mortal.stop() == 0
        faults += await checks.eventually(lambda: checks.processes_left(mortal.data), 60)
        faults += await checks.unsettled(mortal.data)
        faults += checks.told_once(load, listener) + load.faults
    with capsys.disabled():
        print(reaper.table())
        print(f"{len(load.jobs)} jobs, {len(load.files)} files, {listener.times} webhooks")
        print(f"{killed - began:.0f} s of kills, {time.monotonic() - killed:.0f} s until all was over")
    assert not faults, "\n".join(faults[:50])
    assert [phase for phase in PHASES if not reaper.hits[phase]] == []
