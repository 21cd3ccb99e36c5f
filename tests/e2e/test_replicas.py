"""Replicas under a steady load of clients who retry: one dies, all of a service die, the leading scheduler freezes.

Nothing that is asked for again fails, and nothing is done twice.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import nats
import pytest

from gurney import clock
from gurney.documents.mongo import MongoDocuments
from gurney.documents.port import Query, Where
from gurney.model.run import LIVE_PLACEMENTS, Leadership
from gurney.testing.stack import REPLICATED, Stack
from services.scheduler.lease import LEADER
from services.scheduler.repository import LEASE, PLACEMENTS
from tests.e2e import kill_checks as checks
from tests.e2e.kill_load import TERMINAL, Listener, Load, make_maps, prepare
from tests.e2e.kill_server import Insistent
from tests.e2e.kill_stack import ENVIRONMENT, unsettled
from tests.e2e.work import PATIENCE_S

#: Those of whose replicas each does the same; of schedulers one leads.
PEERS = tuple(service for service in REPLICATED if service != "scheduler")
#: So many jobs of others' asking that things go on.
SEVERAL = 5
#: What a job tells once in an attempt.
ONCE = frozenset({"requested", "scheduled", "started", "succeeded", "failed"})
FREEZES = 4
KILLS = 4
#: What is promised of a standby.
TAKES_OVER_WITHIN_S = 5

pytestmark = [pytest.mark.slow, pytest.mark.needs("mongo", "minio"), pytest.mark.timeout(900)]


class Clients(Insistent):
    """They ask for each thing again, with its key, until it is answered."""

    is_late = True


class Scene:
    """A stack, its clients, and what they saw."""

    def __init__(self, stack: Stack, clients: Clients, starts: Path) -> None:
        self.stack = stack
        self.clients = clients
        self.load = Load(clients, seed=1)
        self.listener = Listener()
        self._starts = starts

    async def goes_on(self) -> None:
        """Wait until several jobs have ended that were asked for from now on."""
        before = set(self.load.jobs)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                await checks.stuck(self.clients, self.load)
                ended = [key for key, job in self.load.jobs.items() if job.state in TERMINAL and key not in before]
                if len(ended) >= SEVERAL:
                    return
                await asyncio.sleep(0.1)

    async def faults(self) -> checks.Faults:
        """Return what is wrong when all is over: each job was started once, told once, and is settled."""
        clients, load = self.clients, self.load
        found = await checks.eventually(lambda: checks.stuck(clients, load))
        found += await checks.eventually(lambda: checks.untold(load, self.listener))
        found += await checks.jobs_are_right(clients, load, self._starts, lossy=False)
        found += await checks.results_are_right(clients, load)
        found += await checks.files_are_right(clients, load)
        found += await checks.eventually(lambda: unsettled(self.stack))
        found += checks.told_once(load, self.listener) + load.faults
        return found + await told_twice(self.stack) + await self._delivered_twice()

    async def _delivered_twice(self) -> checks.Faults:
        (handler,) = await checks.all_items(self.clients, "/v1/handlers")
        deliveries = await checks.all_items(self.clients, f"/v1/handlers/{handler['id']}/deliveries")
        times = Counter(delivery["event"] for delivery in deliveries)
        found = [f"{event} has {count} deliveries" for event, count in times.items() if count > 1]
        jobs = len(self.load.jobs)
        return found + ([f"{len(times)} events of {jobs} jobs were delivered"] if len(times) != jobs else [])


@pytest.fixture
def starts(tmp_path: Path) -> Path:
    """The file in which runs note that they began."""
    return tmp_path / "starts"


@pytest.fixture
def stack(tmp_path: Path, starts: Path) -> Iterator[Stack]:
    """Two hosts, and two of each service."""
    (tmp_path / "maps").mkdir()
    with Stack(tmp_path / "data", make_maps(tmp_path / "maps", starts), ENVIRONMENT) as running:
        yield running


@pytest.fixture
async def scene(stack: Stack, starts: Path) -> AsyncIterator[Scene]:
    """The stack, and clients who know where it is."""
    clients = Clients()
    clients.meet(stack.url, stack.token)
    yield Scene(stack, clients, starts)
    await clients.leave()


@asynccontextmanager
async def without(stack: Stack, *names: str) -> AsyncIterator[None]:
    """Kill processes, and start them again after the context."""
    for name in names:
        await asyncio.to_thread(stack.processes[name].kill)
    try:
        yield
    finally:
        for name in names:
            stack.processes[name].begin()
        for name in names:
            await asyncio.to_thread(stack.processes[name].wait)


async def told_twice(stack: Stack) -> checks.Faults:
    """Return the events that are in the stream twice, by id, and what a job tells once and told more often."""
    told = await events_of_jobs(stack)
    ids = Counter(event for event, _ in told)
    subjects = Counter(subject for _, subject in told if subject.split(".")[1] in ONCE)
    return [f"{what} is told {count} times" for what, count in (ids + subjects).items() if count > 1]


async def events_of_jobs(stack: Stack) -> list[tuple[str, str]]:
    """Return id and subject of every event of a job."""
    password = (stack.data / "secrets" / "nats_operator").read_text().strip()
    connection = await nats.connect(stack.nats.url, user="operator", password=password)
    found: list[tuple[str, str]] = []
    try:
        events = await connection.jetstream().subscribe("job.*.*", stream="EVENTS", ordered_consumer=True)
        pending: int | None = 1
        while pending:
            message = await events.next_msg(timeout=10)
            found.append(((message.headers or {})["ce-id"], message.subject))
            pending = message.metadata.num_pending
    finally:
        await connection.close()
    return found


@asynccontextmanager
async def under_load(scene: Scene) -> AsyncIterator[None]:
    """Let the clients work meanwhile, and hold everything against what they saw afterwards."""
    async with scene.listener.listening() as url:
        await prepare(scene.clients, scene.listener, url)
        async with scene.load.running():
            await scene.goes_on()
            yield
            await scene.goes_on()
        found = await scene.faults()
    assert not found, "\n".join(found[:50])


async def test_one_replica_dies(scene: Scene) -> None:
    """The other replica of a service that lost one goes on alone: retried requests succeed, nothing comes twice."""
    async with under_load(scene):
        for service in PEERS:
            async with without(scene.stack, random.choice(scene.stack.of(service))):
                await scene.goes_on()


async def test_a_service_restarts(scene: Scene) -> None:
    """All replicas of a service die and come back: what clients asked meanwhile is done once they ask again."""
    async with under_load(scene):
        for service in REPLICATED:
            async with without(scene.stack, *scene.stack.of(service)):
                pass
            await scene.goes_on()


# --- the leader ---


async def test_the_leading_scheduler_freezes(scene: Scene) -> None:
    """Its standby leads and jobs go on; thawed, the old leader finds that it leads no more, and does nothing."""
    documents = MongoDocuments(scene.stack.mongo.url, "gurney")
    await documents.open([LEASE, PLACEMENTS])
    try:
        async with under_load(scene):
            for _ in range(FREEZES):
                await freeze_leader(scene, documents)
    finally:
        await documents.close()


async def test_the_leading_scheduler_is_killed(scene: Scene) -> None:
    """Its standby leads within seconds, with all that was placed, and places what comes."""
    documents = MongoDocuments(scene.stack.mongo.url, "gurney")
    await documents.open([LEASE, PLACEMENTS])
    try:
        async with under_load(scene):
            for _ in range(KILLS):
                await kill_leader(scene, documents)
    finally:
        await documents.close()


async def kill_leader(scene: Scene, documents: MongoDocuments) -> None:
    """Kill the leader at a random moment; another has taken all over, and placed something, before its time."""
    before = await leading(documents)
    name = scheduler_of(scene.stack, before)
    await asyncio.sleep(random.random())
    async with without(scene.stack, name):
        killed = clock.now()
        async with asyncio.timeout(TAKES_OVER_WITHIN_S):
            after = await led_after(documents, before.epoch)
            while not await placed_since(documents, after.epoch, killed) or await led_by_nobody(documents, after.epoch):
                await asyncio.sleep(0.05)
        await scene.goes_on()


async def placed_since(documents: MongoDocuments, epoch: int, killed: datetime) -> bool:
    """Tell whether a leader has placed anything itself: since the one before was killed."""
    own = await documents.find(PLACEMENTS, Query((Where("epoch", "=", epoch),), sort=("id",)))
    return any(placement.placed_at > killed for placement in own)


async def freeze_leader(scene: Scene, documents: MongoDocuments) -> None:
    """Freeze the leader at a random moment for longer than its term."""
    before = await leading(documents)
    name = scheduler_of(scene.stack, before)
    await asyncio.sleep(random.random())
    await asyncio.to_thread(scene.stack.processes[name].pause)
    after = await led_after(documents, before.epoch)
    assert scheduler_of(scene.stack, after) != name
    await scene.goes_on()
    scene.stack.processes[name].resume()
    async with asyncio.timeout(PATIENCE_S):
        while not leads_no_more(scene.stack, name, before.epoch):
            await asyncio.sleep(0.05)
    await scene.goes_on()
    now = await leading(documents)
    assert (now.epoch, now.holder) == (after.epoch, after.holder)
    assert await checks.eventually(lambda: led_by_nobody(documents, now.epoch)) == []


async def led_by_nobody(documents: MongoDocuments, epoch: int) -> checks.Faults:
    """Return the live placements of a former leader, which nobody has taken over."""
    live = Where("state", "in", sorted(LIVE_PLACEMENTS))
    left = await documents.find(PLACEMENTS, Query((live, Where("epoch", "<", epoch)), sort=("id",)))
    return [f"{placement.id} is of epoch {placement.epoch}" for placement in left]


async def leading(documents: MongoDocuments) -> Leadership:
    """Return the lease."""
    lease = await documents.get(LEASE, LEADER)
    assert lease
    return lease


async def led_after(documents: MongoDocuments, epoch: int) -> Leadership:
    """Return the lease once it is another's."""
    async with asyncio.timeout(PATIENCE_S):
        while (lease := await leading(documents)).epoch == epoch:
            await asyncio.sleep(0.05)
    return lease


def scheduler_of(stack: Stack, lease: Leadership) -> str:
    """Return the name of the process that holds the lease."""
    pid = int(lease.process.split()[-2])
    (name,) = [name for name in stack.of("scheduler") if stack.processes[name].pid == pid]
    return name


def leads_no_more(stack: Stack, name: str, epoch: int) -> bool:
    """Tell whether a scheduler has said so of an epoch."""
    lines = (json.loads(line) for line in stack.processes[name].log.read_text().splitlines() if line.startswith("{"))
    return any(line["event"] == "leads no more" and line["epoch"] == epoch for line in lines)
