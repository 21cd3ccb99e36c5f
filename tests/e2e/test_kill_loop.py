"""SIGKILL of all of Gurney, again and again, at moments of every phase: nothing that was acknowledged is lost.

`GURNEY_SEED` repeats the choices of a run. Moments are steered from outside: a kill comes with the message that begins
a phase, or a little later, or at any time, or while the server starts. The server is the embedded one, or the stack of
services, all of which die at once and leave nats-server, MongoDB and MinIO.
"""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gurney.testing.embedded import EmbeddedProcess
from gurney.testing.stack import Stack
from tests.e2e import kill_checks as checks
from tests.e2e import kill_stack
from tests.e2e.kill_embedded import MortalServer
from tests.e2e.kill_load import Listener, Load, make_maps, prepare
from tests.e2e.kill_reaper import Reaper
from tests.e2e.kill_server import Mortal
from tests.e2e.kill_watch import PHASES

#: Variant -> what befalls every other kill, beside the server's end.
VARIANTS: dict[str, dict[str, bool]] = {"plain": {}, "wiped": {"wipe": True}, "unwatched": {"supervisor": True}}
#: Kind of server -> profile -> kills by variant. The stack takes longer to start; `wiped` has plain kills in it, too.
KILLS = {
    "embedded": {
        "quick": {"plain": 10, "wiped": 10, "unwatched": 10},
        "ci": {"plain": 50, "wiped": 20, "unwatched": 10},
        "long": {"plain": 200, "wiped": 200, "unwatched": 100},
    },
    "stack": {
        "ci": {"wiped": 4},
        "long": {"plain": 40, "wiped": 40, "unwatched": 20},
    },
}
#: So many kills hit every phase.
MANY = 10
NEEDS = pytest.mark.needs("mongo", "minio")
CASES = [
    *(pytest.param("embedded", variant) for variant in VARIANTS),
    pytest.param("stack", "wiped", marks=NEEDS),
    *(pytest.param("stack", variant, marks=[NEEDS, pytest.mark.long]) for variant in ("plain", "unwatched")),
]
#: Rounds come often, so that the end of the test does not wait for them.
ENVIRONMENT = {
    "GURNEY_RECONCILE_INTERVAL": "2",
    "GURNEY_CPU": "4",
    "GURNEY_STOP_GRACE": "1",
    "GURNEY_DOCKER_URL": "none",
}


@pytest.fixture
def seed() -> int:
    return int(os.environ.get("GURNEY_SEED") or random.SystemRandom().randrange(2**32))


@pytest.fixture
def starts(tmp_path: Path) -> Path:
    return tmp_path / "starts"


@pytest.fixture
def dead(kind: str, tmp_path: Path, starts: Path) -> Mortal:
    """A server that is not started yet."""
    (tmp_path / "maps").mkdir()
    maps = make_maps(tmp_path / "maps", starts)
    if kind == "stack":
        return kill_stack.MortalStack(
            Stack(tmp_path / "data", maps, kill_stack.ENVIRONMENT | {"GURNEY_DOCKER_URL": "none"})
        )
    return MortalServer(EmbeddedProcess(tmp_path / "data", maps, ENVIRONMENT))


@pytest.fixture
async def mortal(dead: Mortal) -> AsyncIterator[Mortal]:
    """The server; whatever becomes of it, its processes end with the test."""
    yield dead
    await dead.finish()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "variant"), CASES)
async def test_kills(
    *,
    kind: str,
    variant: str,
    seed: int,
    mortal: Mortal,
    starts: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whenever the server is killed, accepted jobs run once and end, acknowledged files stay, and nothing else does."""
    # The variants: all stays; JetStream wiped between kill and start; the runs' supervisor killed as well.
    count = int(os.environ.get("GURNEY_KILLS") or KILLS[kind][request.config.getoption("--profile")][variant])
    with capsys.disabled():
        print(f"\nGURNEY_SEED={seed}, {count} kills, {kind}, {variant}")
    rng = random.Random(seed)
    load, listener = Load(mortal, seed), Listener()
    reaper = Reaper(mortal, load, listener, starts, rng)
    began = time.monotonic()
    async with listener.listening() as url:
        await reaper.begin()
        await prepare(mortal, listener, url)
        async with load.running():
            for number in range(count):
                await reaper.once(**VARIANTS[variant] if number % 2 else {})
            for _ in range(count // 2 if count >= MANY else 0):  # a phase that was never hit is tried a few times more
                if all(reaper.hits[phase] for phase in PHASES):
                    break
                await reaper.once()
        killed = time.monotonic()
        faults = reaper.faults + await checks.eventually(lambda: checks.stuck(mortal, load))
        faults += await checks.eventually(lambda: checks.untold(load, listener))
        faults += await checks.jobs_are_right(mortal, load, starts, lossy=variant == "unwatched")
        faults += await checks.results_are_right(mortal, load)
        faults += await checks.files_are_right(mortal, load)
        faults += await checks.eventually(mortal.unsettled)
        faults += await checks.eventually(mortal.twice, checks.ALONE_WITHIN_S)
        await reaper.end()
        assert await mortal.stop() == 0
        faults += await checks.eventually(mortal.left, 60)
        faults += await mortal.unsettled()
        faults += checks.told_once(load, listener) + load.faults
        faults += await asyncio.to_thread(lambda: checks.log_is_clean(mortal.logs))
    with capsys.disabled():
        print(reaper.table())
        print(f"{len(load.jobs)} jobs, {len(load.files)} files, {listener.times} webhooks")
        print(f"{killed - began:.0f} s of kills, {time.monotonic() - killed:.0f} s until all was over")
    assert not faults, "\n".join(faults[:50])
    if count >= MANY:
        assert [phase for phase in PHASES if not reaper.hits[phase]] == []
