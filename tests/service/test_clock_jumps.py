"""A host of the scheduler whose wall clock is put forward and back by hours: nobody is lost, nothing is started twice.

Durations are of the monotonic clock, which the test moves apart from the wall clock.
"""

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from gurney import clock, ids
from gurney.documents.sqlite import SqliteDocuments
from gurney.model.job import JobState, PlacementRequest
from gurney.model.resources import Amount
from gurney.model.run import Explain, PlacementState
from gurney.settings import GIB, Settings
from gurney.subjects import SCHEDULER_EXPLAIN
from gurney.testing.nats import NatsServer
from services.scheduler.reconcile import KEPT_FOR
from services.scheduler.repository import PLACEMENTS
from services.scheduler.watch import Watch
from tests.service.scheduler_world import World, a_request, job_of

pytestmark = pytest.mark.needs("nats")

HOURS = [6, -6, 30, -24]
LEASE_S = 60.0


class Clocks:
    """Both clocks of the scheduler's host, each moved by so many seconds. The jobs' own times are of another host."""

    def __init__(self) -> None:
        self.monotonic = 0.0
        self.wall = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.wall + self.monotonic)

    def jump(self, hours: float) -> None:
        self.wall += hours * 3600


class Jumping(World):
    """A world whose clocks the test moves."""

    def __init__(self, settings: Settings, documents: SqliteDocuments, clocks: Clocks) -> None:
        super().__init__(settings, documents)
        self.clocks = clocks
        run, *_ = self.scheduler._parts.tasks
        self.watch: Watch = run.__self__  # type: ignore[attr-defined]

    async def passes(self, seconds: float) -> None:
        """Let time pass, with the looks that come meanwhile; the wall clock goes along."""
        until = clock.monotonic() + seconds
        while (left := until - clock.monotonic()) > 0:
            self.clocks.monotonic += min(left, 5.0)
            await self.watch.look()

    async def beats(self, *runs: str) -> None:
        """Have the node beat, and wait until that was heard."""
        beat = await self.beat(home="a", lease=LEASE_S, runs=runs)

        async def heard() -> bool:
            return "n1" in self.cluster.beats and self.cluster.beats["n1"].at == beat.at

        await self.until(heard)

    async def goes_on(self, *runs: str) -> None:
        """Have all that comes again and again come once."""
        await self.watch.look()
        await self.reconciled()
        await self.beats(*runs)

    async def waits(self, job_id: str) -> bool:
        return (await self.bus.request(SCHEDULER_EXPLAIN, Explain(job_id=job_id))).waiting is not None


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()
    monkeypatch.setattr(clock, "monotonic", lambda: time.monotonic() + clocks.monotonic)
    monkeypatch.setattr(clock, "now", clocks.now)
    return clocks


@pytest.fixture
async def world(nats_server: NatsServer, tmp_path: Path, clocks: Clocks) -> AsyncIterator[Jumping]:
    settings = Settings(nats_url=nats_server.url, data=tmp_path, run_secret=SecretStr("a secret of runs"))
    documents = SqliteDocuments(tmp_path / "documents.db", sync="normal")
    async with Jumping(settings, documents, clocks) as world:
        await world.join(home="a", lease=LEASE_S)
        yield world
    await documents.close()


async def requested(world: Jumping, **resources: Any) -> PlacementRequest:
    """Have a job requested by a host that has the right time."""
    request = a_request(at=clock.now() - timedelta(seconds=world.clocks.wall), **resources)
    world.job.jobs[request.job_id] = job_of(request)
    return await world.request(request)


@pytest.mark.parametrize("hours", HOURS)
async def test_no_node_and_no_run_is_lost(world: Jumping, hours: float) -> None:
    """Runs live on, also one that its agent has not named yet; what waits is placed when the node is heard of."""
    running, fresh = await world.started(cpu=0.5), await world.started(cpu=0.5)
    world.clocks.jump(hours)
    for _ in range(3):
        await world.goes_on(running.run_id)
    assert world.nodes.empty()
    assert [(await world.placement(each.run_id)).state for each in (running, fresh)] == [PlacementState.CONFIRMED] * 2
    assert world.lifecycle.empty()
    request = await requested(world, cpu=0.5)
    start = await world.next(world.starts)
    assert start.job_id == request.job_id
    await world.passes(20)
    for _ in range(3):
        await world.goes_on(running.run_id)
    await world.becomes(fresh.run_id, PlacementState.ENDED)  # only time ends what its agent does not name


@pytest.mark.parametrize("hours", HOURS)
async def test_a_command_without_an_answer_is_sent_again_in_time(world: Jumping, hours: float) -> None:
    """After ten seconds, neither at once nor hours later."""
    await world.request()
    start = await world.next(world.starts)
    world.clocks.jump(hours)
    await world.goes_on()
    await world.reconciled()
    assert world.starts.empty()
    await world.passes(11)
    await world.goes_on()
    await world.reconciled()
    assert await world.next(world.starts) == start


@pytest.mark.parametrize("hours", HOURS)
async def test_a_reservation_holds_for_ten_seconds(world: Jumping, hours: float) -> None:
    """One whose job is not there yet is neither given back at once nor kept for hours."""
    job_id = await world.admit(cpu=2.0)
    run_id = ids.run_id(job_id, 1)
    world.clocks.jump(hours)
    await world.goes_on()
    assert (await world.placement(run_id)).state is PlacementState.RESERVED
    await world.passes(11)
    await world.goes_on()
    assert await world.documents.get(PLACEMENTS, run_id) is None


async def test_a_job_does_not_fail_for_want_of_a_node_before_its_time(world: Jumping) -> None:
    """That it can run nowhere any more is told, and `infeasible` comes after the set time has passed."""
    await world.started(cpu=2.0)
    request = await world.request(cpu=2.0)
    await world.until(lambda: world.waits(request.job_id))
    await world.beat(home="a", lease=LEASE_S, capacity=Amount(cpu=1, memory=8 * GIB))

    async def shrunk() -> bool:
        return (await world.node()).capacity.cpu == 1

    await world.until(shrunk)
    await world.reconciled()
    for hours in (*HOURS, sum(HOURS)):
        world.clocks.jump(hours)
        await world.reconciled()
        assert await world.waits(request.job_id)
    world.clocks.monotonic += world.settings.infeasible_after
    await world.reconciled()
    assert not await world.waits(request.job_id)


@pytest.mark.parametrize("stays", [0, 60, 1400])
@pytest.mark.parametrize(("there", "back"), [(6, -6), (6, 0), (6, -12), (-6, 0), (0.5, -0.5), (-0.1, 0)])
async def test_a_job_that_is_told_again_is_not_started_again(
    world: Jumping, there: float, back: float, stays: float
) -> None:
    """Its placement is there for as long as its request may be taken for a new one."""
    await world.goes_on()
    world.clocks.monotonic += KEPT_FOR.total_seconds()  # it has led for a while
    await world.goes_on()
    request = await requested(world)
    start = await world.next(world.starts)
    assert (await world.confirm(start)).start
    await world.end(start)
    await world.becomes(start.run_id, PlacementState.ENDED)
    world.job.requested.clear()
    world.job.live.clear()
    world.job.jobs[request.job_id] = job_of(request, JobState.SUCCEEDED)
    await world.reconciled()
    for _ in range(3):
        world.clocks.jump(there)
        for _ in range(2):
            await world.goes_on()
            world.clocks.monotonic += stays / 2
        await world.goes_on()
        world.clocks.jump(back)
        await world.tell(request)
        await settled(world)
        found = await world.documents.get(PLACEMENTS, start.run_id)
        assert found is None or found.state is PlacementState.ENDED


async def settled(world: Jumping) -> None:
    """Wait until the scheduler has taken in what it was told: a later question has its answer."""
    marker = await world.request(cpu=64.0)
    await world.until(lambda: world.waits(marker.job_id))
    world.job.requested.clear()
    await world.reconciled()  # the marker goes
