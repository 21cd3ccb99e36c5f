"""Nodes that are drained and resumed, over a real nats-server: what is placed there, and for how long that holds."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from pydantic import SecretStr

from gurney.documents.port import Write
from gurney.documents.sqlite import SqliteDocuments
from gurney.errors import GurneyError, NoRoom, NotFound
from gurney.model.common import Ref
from gurney.model.run import Explain, Explained, Node, NodeState, PlacementState
from gurney.settings import Settings
from gurney.subjects import SCHEDULER_DRAIN, SCHEDULER_EXPLAIN, SCHEDULER_RESUME
from gurney.testing.nats import NatsServer
from services.scheduler.repository import NODES
from tests.service.scheduler_world import World

pytestmark = pytest.mark.needs("nats")


@pytest.fixture
async def documents(tmp_path: Path) -> AsyncIterator[SqliteDocuments]:
    documents = SqliteDocuments(tmp_path / "documents.db", sync="normal")
    yield documents
    await documents.close()


@pytest.fixture
def settings(nats_server: NatsServer, tmp_path: Path) -> Settings:
    return Settings(nats_url=nats_server.url, data=tmp_path, run_secret=SecretStr("a secret of runs"))


@pytest.fixture
async def world(settings: Settings, documents: SqliteDocuments) -> AsyncIterator[World]:
    async with World(settings, documents) as world:
        yield world


async def drain(world: World, name: str = "n1") -> Node:
    return await world.bus.request(SCHEDULER_DRAIN, Ref(ref=name))


async def resume(world: World, name: str = "n1") -> Node:
    return await world.bus.request(SCHEDULER_RESUME, Ref(ref=name))


async def explained(world: World, job_id: str) -> Explained | None:
    found = await world.bus.request(SCHEDULER_EXPLAIN, Explain(job_id=job_id))
    return found if found.waiting else None


async def test_a_drained_node_gets_nothing_new_until_it_is_resumed(world: World) -> None:
    """What it has goes on to its end; what waits says why, and starts when the node is resumed."""
    await world.join()
    running = await world.started(cpu=0.5)
    await world.request(cpu=0.5)
    placed = await world.next(world.starts)
    found = await drain(world)
    assert (found.state, found.drained, found.used.cpu) == (NodeState.DRAINING, True, 1.0)
    waits = await world.request(cpu=0.5)
    waiting = (await world.until(lambda: explained(world, waits.job_id))).waiting
    assert waiting is not None
    assert [(reason.code, reason.count) for reason in waiting.reasons] == [("draining", 1)]
    with pytest.raises(NoRoom, match="draining"):
        await world.admit(cpu=0.5)
    assert (await world.confirm(placed)).start
    await world.end(running)
    await world.becomes(running.run_id, PlacementState.ENDED)
    await world.beat()
    await world.reconciled()
    assert world.starts.empty()
    assert (await resume(world)).state is NodeState.READY
    assert (await world.next(world.starts)).job_id == waits.job_id


async def test_jobs_go_to_the_other_nodes(world: World) -> None:
    """A drained node is passed over, however much room it has."""
    await world.join("n1")
    await drain(world, "n1")
    await world.next(world.nodes)
    await world.join("n2")
    assert {(await world.started(cpu=0.5)).node for _ in range(4)} == {"n2"}


async def test_asking_again_changes_nothing(world: World) -> None:
    """One event tells of each change; the document keeps its revision."""
    await world.join()
    revisions = set()
    for _ in range(3):
        await drain(world)
        revisions.add((await world.scheduler.store.get(NODES, "n1")).revision)
    assert (len(revisions), (await world.next(world.nodes)).state) == (1, NodeState.DRAINING)
    for _ in range(3):
        await resume(world)
    assert ((await world.next(world.nodes)).state, world.nodes.empty()) == (NodeState.READY, True)


async def test_what_is_not_there_cannot_be_drained(world: World) -> None:
    """A node that nobody knows is told as such, and none comes to be."""
    for ask in (drain, resume):
        with pytest.raises(NotFound, match="there is no node n1"):
            await ask(world)
    await world.join()
    assert (await world.node()).state is NodeState.READY


async def test_a_new_leader_and_a_new_agent_find_it_drained(settings: Settings, documents: SqliteDocuments) -> None:
    """It is in the node's document, which neither a restart nor a heartbeat of a new agent changes in this."""
    async with World(settings, documents) as world:
        await world.join()
        await drain(world)
    async with World(settings, documents) as world:
        assert (await world.node()).state is NodeState.DRAINING
        await world.beat(incarnation="i2", labels={"site": "a"})

        async def follows() -> bool:
            return (await world.node()).labels == {"site": "a"}

        await world.until(follows)
        assert (await world.node()).state is NodeState.DRAINING
        request = await world.request()
        await world.until(lambda: explained(world, request.job_id))
        await resume(world)
        assert (await world.next(world.starts)).job_id == request.job_id


async def test_a_heartbeat_on_its_way_undoes_nothing(
    world: World, documents: SqliteDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was read before the drain and is written, or heard, after it leaves the node drained."""
    await world.join()
    real, gate, reached = documents.cas, asyncio.Event(), asyncio.Event()

    async def cas(writes: Sequence[Write]) -> list[GurneyError | None]:
        if not reached.is_set() and any(write.collection is NODES for write in writes):
            reached.set()
            await gate.wait()
        return await real(writes)

    monkeypatch.setattr(documents, "cas", cas)
    await world.beat(labels={"site": "a"})
    await reached.wait()
    await drain(world)
    gate.set()

    async def follows() -> bool:
        return (await world.node()).labels == {"site": "a"}

    await world.until(follows)
    assert (await world.node()).state is NodeState.DRAINING
    assert (await world.scheduler.store.get(NODES, "n1")).drained
