"""The MAP service over a real nats-server and real SQLite; a stand-in for the scheduler answers its question."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gurney.bus import Bus
from gurney.documents.sqlite import SqliteDocuments
from gurney.errors import NoNodes
from gurney.model.access import Caller, Role
from gurney.model.common import Ref
from gurney.model.map import InspectAccepted, InspectMap, MapList, MapRegister, RegisterMap
from gurney.service import Parts, Service
from gurney.settings import Settings
from gurney.subjects import MAP_GET, MAP_LIST, MAP_REGISTER, SCHEDULER_INSPECT
from gurney.testing.nats import NatsServer
from services.map.__main__ import build
from services.map.repository import MAPS, TRIALS

pytestmark = [pytest.mark.needs("nats"), pytest.mark.timeout(60)]

ANN = Caller(token="tok_a", subject="ann", role=Role.DEVELOPER)


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
async def documents(tmp_path: Path) -> AsyncIterator[SqliteDocuments]:
    """A database."""
    database = SqliteDocuments(tmp_path / "documents.sqlite", sync="normal")
    yield database
    await database.close()


@pytest.fixture
async def bus(
    nats_server: NatsServer, tmp_path: Path, documents: SqliteDocuments, scheduler: Scheduler
) -> AsyncIterator[Bus]:
    """Asks the service, whose reconciler comes by itself once an hour."""
    settings = Settings(nats_url=nats_server.url, data=tmp_path, reconcile_interval=3600)
    other = Service("scheduler", settings).does(Parts(answers={SCHEDULER_INSPECT: scheduler.inspect}))
    edge = Service("edge", settings)
    async with other, build(settings, documents=documents), edge:
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


async def test_a_dry_run_that_nobody_reads_in_time_leaves_nothing(
    bus: Bus, documents: SqliteDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer says how far it came: there is no node, or it still reads."""
    monkeypatch.setattr("services.map.handlers.TRIAL_S", 0.2)
    tried = await bus.request(MAP_REGISTER, question(dry_run=True))
    assert (tried.id, tried.state) == ("", "registering")
    for collection in (MAPS, TRIALS):
        assert await documents.totals(collection, ()) == (0, 0)
