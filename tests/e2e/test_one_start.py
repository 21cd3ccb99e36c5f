"""SIGKILL of every service and server at random under no-op jobs on four hosts: each attempt is started exactly once.

What was started is counted outside Gurney: processes append a line to a file, of containers dockerd tells.
`GURNEY_SEED` repeats the choices of a run, `GURNEY_JOBS` says how many jobs there are, `GURNEY_KILLS` how often each
kind of part is killed.
"""

import asyncio
import contextlib
import os
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gurney.runtime.docker.runs import RUN_LABEL
from gurney.testing.child import Child
from gurney.testing.docker import DockerDaemon
from gurney.testing.stack import Stack
from tests.e2e import kill_checks as checks
from tests.e2e.kill_load import Listener, Load, make_images, make_maps, prepare
from tests.e2e.kill_parts import PARTS, BreakingStack
from tests.e2e.kill_server import Insistent
from tests.e2e.kill_stack import ENVIRONMENT, unsettled

#: Profile -> how many jobs there are, and how often each kind of part is killed.
MEASURE = {"ci": (150, 2), "long": (10_000, 52)}
IN_FLIGHT = 64
#: So many parts may be away at once.
HANDS = 2
#: Clients run ahead of a kill that is due by no more jobs than this.
AHEAD = IN_FLIGHT
KINDS = {"quick": 9, "quick-image": 1}


class NoOps(Load):
    """Clients who submit one no-op job after the other, each when the last one has ended, until there are enough."""

    def __init__(self, server: Insistent, seed: int, count: int, kills: deque[tuple[int, str]]) -> None:
        """`kills`: after how many jobs which kind of part is killed, in order; whoever carries one out takes it out."""
        super().__init__(server, seed)
        self._count = count
        self._kills = kills

    async def _submitter(self, rng: random.Random) -> None:
        payload = await self._payload()
        while await self._has_more():
            (kind,) = rng.choices(list(KINDS), weights=list(KINDS.values()))
            await self.end_of(await self._submit(payload, kind))

    async def _has_more(self) -> bool:
        while self._kills and len(self.jobs) > self._kills[0][0] + AHEAD:
            await asyncio.sleep(0.05)
        return len(self.jobs) < self._count

    async def until(self, count: int) -> None:
        """Wait until so many jobs were submitted."""
        while len(self.jobs) < count:
            await asyncio.sleep(0.02)


@pytest.fixture
def starts(tmp_path: Path) -> Path:
    """The file in which processes note that they began."""
    return tmp_path / "starts"


@pytest.fixture
def stack(tmp_path: Path, starts: Path, docker_daemon: DockerDaemon) -> Iterator[Stack]:
    """A stack of four hosts, which have one Docker daemon."""
    (tmp_path / "maps").mkdir()
    environment = ENVIRONMENT | {"GURNEY_DOCKER_URL": docker_daemon.url}
    with Stack(tmp_path / "data", make_maps(tmp_path / "maps", starts), environment, agents=4) as running:
        yield running


@pytest.fixture
async def breaking(stack: Stack) -> AsyncIterator[BreakingStack]:
    server = BreakingStack(stack)
    server.meet(stack.url, stack.token)
    yield server
    await server.leave()


@pytest.fixture
def images(docker_daemon: DockerDaemon) -> dict[str, str]:
    """What runs on the daemon: kind -> reference."""
    with contextlib.closing(docker_daemon.client()) as client:
        return make_images(client)


@pytest.fixture
def events(tmp_path: Path, docker_daemon: DockerDaemon) -> Iterator[Path]:
    """The file in which the daemon's own client notes each container of a run that was started."""
    log = tmp_path / "events"
    command = ["docker", "--host", docker_daemon.url, "events", "--since", str(int(time.time()))]
    command += ["--filter", "type=container", "--filter", "event=start", "--filter", f"label={RUN_LABEL}"]
    with Child([*command, "--format", f'{{{{index .Actor.Attributes "{RUN_LABEL}"}}}}'], log):
        yield log


def started_containers(events: Path) -> Counter[tuple[str, int]]:
    """Return how often each (job, attempt) was started in a container."""
    runs = [line.rpartition("-") for line in events.read_text().splitlines()]
    return Counter((job, int(attempt)) for job, _, attempt in runs)


@pytest.mark.slow
@pytest.mark.needs("docker", "mongo", "minio")
@pytest.mark.timeout(7200)
async def test_one_start(
    *,
    breaking: BreakingStack,
    starts: Path,
    events: Path,
    images: dict[str, str],
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whichever services are killed, each attempt of each job is started once, and each job ends, at its first one."""
    seed = int(os.environ.get("GURNEY_SEED") or random.SystemRandom().randrange(2**32))
    count, each = MEASURE[request.config.getoption("--profile")]
    count, each = int(os.environ.get("GURNEY_JOBS") or count), int(os.environ.get("GURNEY_KILLS") or each)
    with capsys.disabled():
        print(f"\nGURNEY_SEED={seed}, {count} jobs, {each} kills of each kind")
    rng = random.Random(seed)
    kinds = list(PARTS) * each
    rng.shuffle(kinds)
    kills = deque(zip(sorted(rng.choices(range(count), k=len(kinds))), kinds, strict=True))
    load, listener = NoOps(breaking, seed, count, kills), Listener()

    async def hand() -> None:
        while kills:
            due, kind = kills.popleft()
            await load.until(due)
            await breaking.befall(kind, rng)

    began = time.monotonic()
    async with listener.listening() as url:
        await prepare(breaking, listener, url, images)
        async with load.running(0, IN_FLIGHT):
            await asyncio.gather(*(hand() for _ in range(HANDS)))
            await load.until(count)
        killed = time.monotonic()
        found = await checks.eventually(lambda: checks.stuck(breaking, load))
        found += await checks.eventually(lambda: checks.untold(load, listener))
        containers = started_containers(events)
        found += await checks.jobs_are_right(breaking, load, starts, lossy=False, containers=containers)
        found += await checks.eventually(lambda: unsettled(breaking.stack))
        found += checks.told_once(load, listener) + load.faults
    processes = checks.started_runs(starts)
    with capsys.disabled():
        print(breaking.table())
        print(f"{breaking.done.total()} kills, {len(load.jobs)} jobs, {listener.times} webhooks")
        print(f"{len(processes)} attempts as processes, started {processes.total()} times")
        print(f"{len(containers)} attempts in containers, started {containers.total()} times")
        print(f"{killed - began:.0f} s of kills, {time.monotonic() - killed:.0f} s until all was over")
    assert not found, "\n".join(found[:50])
    assert len(load.jobs) == count
    assert breaking.done == Counter(kinds)
