"""What runs that are over have shown outlives the scheduler that saw it: over each store."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from gurney import ids
from gurney.documents.mongo import MongoDocuments
from gurney.documents.port import Documents, Write
from gurney.documents.sqlite import SqliteDocuments
from gurney.model.resources import Amount
from gurney.model.run import ProjectPast, RunTimes
from gurney.settings import GIB, Settings
from gurney.testing.mongo import MongoServer
from gurney.testing.nats import NatsServer
from services.scheduler import history
from services.scheduler.predict import MAPS, UNKNOWN_S
from services.scheduler.repository import PROJECT_PASTS, RUN_TIMES
from services.scheduler.tenure import Deposed
from tests.service.scheduler_rivals import Rival, Rivalry, noted_rivals
from tests.service.scheduler_world import World

pytestmark = pytest.mark.needs("nats")

#: The digest and the project of the world's jobs.
DIGEST, PROJECT = "sha256:0", "default"


@pytest.fixture(params=["sqlite", pytest.param("mongo", marks=pytest.mark.needs("mongo"))])
async def documents(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Documents]:
    """Each store."""
    if request.param == "sqlite":
        kept = SqliteDocuments(tmp_path / "documents.db", sync="normal")
        yield kept
        await kept.close()
        return
    server: MongoServer = request.getfixturevalue("mongo_server")
    served = MongoDocuments(server.url, ids.new_id("ins"))
    yield served
    await served.close()
    server.drop(served.database)


@pytest.fixture
def settings(nats_server: NatsServer, tmp_path: Path) -> Settings:
    settings = Settings(nats_url=nats_server.url, data=tmp_path, run_secret=SecretStr("a secret of runs"))
    return settings.model_copy(update={"heartbeat_interval": 60.0})


@pytest.fixture
async def world(settings: Settings, documents: Documents, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rivalry]:
    async with Rivalry(settings, documents, noted_rivals(monkeypatch)) as world:
        yield world


async def a_run_ends(world: World) -> None:
    start = await world.started(cpu=1.0)
    await world.age(start.run_id, 100.0)
    await world.end(start)


async def of_maps(documents: Documents) -> RunTimes | None:
    return await documents.get(RUN_TIMES, DIGEST)


async def of_projects(documents: Documents) -> ProjectPast | None:
    return await documents.get(PROJECT_PASTS, PROJECT)


async def test_a_restart_keeps_it(settings: Settings, documents: Documents) -> None:
    """A scheduler that is alone writes it when it ends, whatever it had written before."""
    async with World(settings, documents) as world:
        await world.join(capacity=Amount(cpu=2, memory=8 * GIB))
        assert world.cluster.durations.expected(DIGEST) == UNKNOWN_S
        await a_run_ends(world)
        before = dict(world.cluster.shares.pasts(world.cluster.shares._past[PROJECT].at))
        expected = world.cluster.durations.expected(DIGEST)
        assert 100 <= expected < 200
        assert before[PROJECT].value > 0
    async with World(settings, documents) as world:
        assert world.cluster.durations.expected(DIGEST) == expected
        assert world.cluster.shares._past == before


async def test_a_successor_has_it(world: Rivalry, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written while the leader leads: one that is frozen or dies takes seconds of it along."""
    monkeypatch.setattr(history, "KEEP_EVERY_S", 0.01)
    first = await led(world)
    await a_run_ends(world)
    await world.until(lambda: of_maps(world.documents))
    await world.until(lambda: of_projects(world.documents))
    second = await world.successor()
    assert second.cluster.durations.known == first.cluster.durations.known
    assert second.cluster.shares._past == first.cluster.shares._past


async def test_a_successor_overrules_its_predecessor(world: Rivalry) -> None:
    """What a former leader writes late stays until the leader writes, and the former one sees that then."""
    first = await led(world)
    await a_run_ends(world)
    await first.history.write()
    second = await world.successor()
    first.cluster.durations.note(DIGEST, 1.0)
    await first.history.write()
    second.cluster.durations.note(DIGEST, 2.0)
    second.cluster.durations.note("other", 3.0)
    await second.history.write()
    await second.history.write()
    written = await of_maps(world.documents)
    assert written
    assert (written.epoch, written.seconds[1:]) == (2, (2.0,))
    first.cluster.durations.note(DIGEST, 4.0)
    with pytest.raises(Deposed):
        await first.history.write()
    assert await of_maps(world.documents) == written
    assert not first.tenure.leads


async def test_what_has_not_changed_is_not_written(world: Rivalry) -> None:
    """A leader that sees no run end writes nothing, nor does one that has taken over."""
    first = await led(world)
    await a_run_ends(world)
    await first.history.write()
    written = await of_maps(world.documents), await of_projects(world.documents)
    await first.history.write()
    second = await world.successor()
    await second.history.write()
    assert (await of_maps(world.documents), await of_projects(world.documents)) == written


async def test_old_maps_go(world: Rivalry) -> None:
    """There are never more documents than MAPs are remembered."""
    first = await led(world)
    for number in range(MAPS + 10):
        first.cluster.durations.note(f"sha256:{number}", 1.0)
    await first.history.write()
    first.cluster.durations.note("sha256:new", 1.0)
    await first.history.write()
    assert await world.documents.totals(RUN_TIMES, ()) == (MAPS, 0)
    second = await world.successor()
    assert set(second.cluster.durations.known) == set(first.cluster.durations.known)


async def test_a_document_that_went_is_written_anew(world: Rivalry) -> None:
    """Documents may be put back to what they were before."""
    first = await led(world)
    first.cluster.durations.note(DIGEST, 1.0)
    await first.history.write()
    assert await world.documents.cas([Write(RUN_TIMES, DIGEST, 1, None)]) == [None]
    first.cluster.durations.note(DIGEST, 2.0)
    await first.history.write()
    await first.history.write()
    written = await of_maps(world.documents)
    assert written
    assert written.seconds == (1.0, 2.0)


async def led(world: Rivalry) -> Rival:
    """Return the first leader, with a node."""
    first = await world.leader()
    world.reconciler = first.reconcile
    await world.join(capacity=Amount(cpu=2, memory=8 * GIB))
    return first
