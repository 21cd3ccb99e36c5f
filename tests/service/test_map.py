"""The MAP service over a real nats-server and real SQLite; a stand-in for the scheduler answers its question."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gurney import ids
from gurney.bus import Bus
from gurney.documents.port import Write
from gurney.documents.sqlite import SqliteDocuments
from gurney.errors import NatsUnavailable, NoNodes
from gurney.model.access import Caller, Role
from gurney.model.common import Digests, Ref
from gurney.model.job import LiveJobs, MapJobs
from gurney.model.map import (
    InspectAccepted,
    InspectMap,
    Map,
    MapList,
    MapRegister,
    MapState,
    RegisterMap,
    StaticContent,
)
from gurney.service import Parts, Service
from gurney.settings import Settings
from gurney.subjects import (
    JOB_LIVE,
    JOB_NEEDED,
    MAP_GET,
    MAP_LIST,
    MAP_NEEDED,
    MAP_REGISTER,
    MAP_UNREGISTER,
    SCHEDULER_INSPECT,
)
from gurney.testing.nats import NatsServer
from services.map.__main__ import build
from services.map.repository import MAPS, TRIALS
from tests.job_builders import a_map

pytestmark = [pytest.mark.needs("nats"), pytest.mark.timeout(60)]

ANN = Caller(token="tok_a", subject="ann", role=Role.DEVELOPER)


#: What live jobs need, in the tests below.
OF_JOBS = "sha256:j"


class Jobs:
    """The job service: live jobs need one digest, and no MAP has any."""

    def __init__(self) -> None:
        self.asked: list[Digests] = []

    async def needed(self, question: Digests) -> Digests:
        self.asked.append(question)
        return Digests(digests=tuple({OF_JOBS} & set(question.digests)))

    async def live(self, question: MapJobs) -> LiveJobs:
        del question
        return LiveJobs(jobs=(), count=0)


class Scheduler:
    """Has no node for the first questions."""

    def __init__(self) -> None:
        self.lacks = 0
        self.asked: asyncio.Queue[InspectMap] = asyncio.Queue()

    async def inspect(self, question: InspectMap) -> InspectAccepted:
        self.lacks -= 1
        if self.lacks >= 0:
            raise NoNodes("no node is there", retry_after_s=5)
        await self.asked.put(question)
        return InspectAccepted(node="node-1")


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
async def documents(tmp_path: Path) -> AsyncIterator[SqliteDocuments]:
    """A database."""
    database = SqliteDocuments(tmp_path / "documents.sqlite", sync="normal")
    yield database
    await database.close()


@pytest.fixture
async def bus(
    nats_server: NatsServer, tmp_path: Path, documents: SqliteDocuments, scheduler: Scheduler, jobs: Jobs
) -> AsyncIterator[Bus]:
    """Asks the service, whose reconciler comes by itself once an hour."""
    settings = Settings(nats_url=nats_server.url, data=tmp_path, reconcile_interval=3600)
    other = Service("scheduler", settings).does(Parts(answers={SCHEDULER_INSPECT: scheduler.inspect}))
    job = Service("job", settings).does(Parts(answers={JOB_NEEDED: jobs.needed, JOB_LIVE: jobs.live}))
    edge = Service("edge", settings)
    async with other, job, build(settings, documents=documents), edge:
        yield edge.bus


def question(*, dry_run: bool = False) -> MapRegister:
    return MapRegister(caller=ANN, body=RegisterMap(urn="urn:gurney:dir:app"), dry_run=dry_run)


@pytest.mark.parametrize("dry_run", [False, True])
async def test_a_map_that_comes_before_the_first_node_is_read_when_one_is_there(
    bus: Bus, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, *, dry_run: bool
) -> None:
    """Nobody waits for the reconciler's next round, with a dry run neither."""
    monkeypatch.setattr("services.map.handlers.TRIAL_S", 3.0)  # less than a question may take, and nobody reports here
    scheduler.lacks = 2
    registering = asyncio.create_task(bus.request(MAP_REGISTER, question(dry_run=dry_run)))
    async with asyncio.timeout(20):
        asked = await scheduler.asked.get()
    assert (asked.urn, asked.avoid) == ("urn:gurney:dir:app", ())
    await registering


async def test_a_name_is_the_same_however_its_characters_are_made_up(bus: Bus) -> None:
    """A MAP is found by its name in NFD, as macOS has names of files, too."""
    composed, apart = "Sch\u00e4del", "Scha\u0308del"
    body = RegisterMap(urn="urn:gurney:dir:app", name=apart)
    made = await bus.request(MAP_REGISTER, MapRegister(caller=ANN, body=body))
    assert made.name == composed
    for name in (composed, apart):
        assert (await bus.request(MAP_GET, Ref(caller=ANN, ref=name))).id == made.id
        assert [each.id for each in (await bus.request(MAP_LIST, MapList(caller=ANN, name=name))).items] == [made.id]


async def stored(documents: SqliteDocuments, **changes: Any) -> Map:
    made = a_map(**({"id": ids.new_id("map"), "name": None} | changes))
    faults = await documents.cas([Write(MAPS, made.id, 0, made)])
    assert faults == [None]
    return made


async def needed(bus: Bus, *digests: str) -> set[str]:
    return set((await bus.request(MAP_NEEDED, Digests(digests=digests))).digests)


async def test_copies_are_needed_of_maps_that_may_run_and_of_live_jobs(
    bus: Bus, documents: SqliteDocuments, jobs: Jobs
) -> None:
    """A MAP that is ready needs itself and what it brings along, `invalid` and former ones nothing; live jobs may."""
    content = StaticContent(payload="pay_1", path="/opt/models", digest="sha256:c")
    ready = await stored(documents, digest="sha256:a", content=content)
    await stored(documents, digest="sha256:b", state=MapState.INVALID)
    await stored(documents, digest="sha256:d", state=MapState.UNREGISTERED, content=content)
    kept = {"sha256:a", "sha256:c"}
    assert await needed(bus, "sha256:a", "sha256:b", "sha256:c", "sha256:d", OF_JOBS) == kept | {OF_JOBS}
    assert jobs.asked[-1].digests == ("sha256:b", "sha256:d", OF_JOBS)
    await bus.request(MAP_UNREGISTER, Ref(caller=ANN, ref=ready.id))
    assert await needed(bus, *kept) == set()
    twin = await stored(documents, digest="sha256:a")
    assert await needed(bus, *kept) == {"sha256:a"}
    assert twin.id != ready.id


async def test_all_copies_are_needed_while_a_folder_is_read(bus: Bus, documents: SqliteDocuments) -> None:
    """A node may have made the copy of a MAP whose digest no document has yet; an image that is pulled keeps none."""
    pulled = await stored(documents, digest=None, state=MapState.REGISTERING, urn="urn:oci:registry.example/map:1")
    assert await needed(bus, "sha256:a") == set()
    assert pulled.digest is None
    registering = await bus.request(MAP_REGISTER, question())
    assert await needed(bus, "sha256:a", "sha256:b") == {"sha256:a", "sha256:b"}
    await bus.request(MAP_UNREGISTER, Ref(caller=ANN, ref=registering.id))
    assert await needed(bus, "sha256:a", "sha256:b") == set()


async def test_nobody_learns_what_is_needed_while_the_job_service_is_away(
    nats_server: NatsServer, tmp_path: Path, documents: SqliteDocuments
) -> None:
    """Without the word of the job service there is no answer, so that nothing goes."""
    settings = Settings(nats_url=nats_server.url, data=tmp_path, reconcile_interval=3600)
    async with build(settings, documents=documents), Service("edge", settings) as edge:
        with pytest.raises(NatsUnavailable):
            await needed(edge.bus, "sha256:a")


async def test_a_dry_run_that_nobody_reads_in_time_leaves_nothing(
    bus: Bus, documents: SqliteDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer says how far it came: there is no node, or it still reads."""
    monkeypatch.setattr("services.map.handlers.TRIAL_S", 0.2)
    tried = await bus.request(MAP_REGISTER, question(dry_run=True))
    assert (tried.id, tried.state) == ("", "registering")
    for collection in (MAPS, TRIALS):
        assert await documents.totals(collection, ()) == (0, 0)
