"""Nodes that fall silent, over a real nats-server: when they are lost, what becomes of their runs, who gets their name.

Time is moved by the test: the leader's looks come as often as they do in life, as far as its clock goes.
"""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from gurney import clock, ids
from gurney.documents.sqlite import SqliteDocuments
from gurney.errors import Infeasible, NatsUnavailable, NoNodes, NotFound
from gurney.model.common import Ref
from gurney.model.job import Admission, PlacementRequest, Waiting, WaitReason
from gurney.model.run import Explain, Node, NodeState, PlacementState, StartRun
from gurney.settings import Settings
from gurney.subjects import SCHEDULER_DRAIN, SCHEDULER_EXPLAIN, SCHEDULER_NODE, SCHEDULER_RESUME, Operation
from gurney.testing.nats import NatsServer
from services.scheduler import census, snapshot
from services.scheduler.presence import MARGIN_S
from services.scheduler.repository import NODES
from services.scheduler.watch import Watch
from tests.service.scheduler_world import World

pytestmark = pytest.mark.needs("nats")

LEASE_S = 60.0
LOST_S = 30.0


class Silence(World):
    """A world whose clock the test moves."""

    def __init__(self, settings: Settings, documents: SqliteDocuments, offset: list[float]) -> None:
        super().__init__(settings, documents)
        self._offset = offset
        run, *_ = self.scheduler._parts.tasks
        self.watch: Watch = run.__self__  # type: ignore[attr-defined]

    async def passes(self, seconds: float) -> None:
        """Let time pass, with the looks that come meanwhile."""
        until = clock.monotonic() + seconds
        while (left := until - clock.monotonic()) > 0:
            self._offset[0] += min(left, 5.0)
            await self.watch.look()

    async def leased(self, node: str = "n1", **more: Any) -> None:
        """Have a node join whose runs have leases."""
        await self.join(node, home=f"home of {node}", lease=LEASE_S, **more)

    async def lapses(self, node: str = "n1") -> None:
        """Have the node's key lapse, as it does by itself."""
        await self.bus.js.purge_stream("KV_heartbeats", subject=f"$KV.heartbeats.{node}")

    async def beats(self, node: str = "n1", **more: Any) -> None:
        """Have a node beat, and wait until that was heard."""
        beat = await self.beat(node, **{"home": f"home of {node}", "lease": LEASE_S} | more)

        async def heard() -> bool:
            return node in self.cluster.beats and self.cluster.beats[node].at == beat.at

        await self.until(heard)

    async def event(self, name: str = "n1") -> NodeState:
        """Return the state that the next event of a node tells."""
        told = await self.next(self.nodes)
        assert told.id == name
        return told.state

    async def state(self, run_id: str) -> PlacementState:
        return (await self.placement(run_id)).state


@pytest.fixture
def offset(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    moved = [0.0]
    monkeypatch.setattr(clock, "monotonic", lambda: time.monotonic() + moved[0])
    return moved


@pytest.fixture
async def world(nats_server: NatsServer, tmp_path: Path, offset: list[float]) -> AsyncIterator[Silence]:
    settings = Settings(
        nats_url=nats_server.url,
        data=tmp_path,
        run_secret=SecretStr("a secret of runs"),
        node_lost_after=LOST_S,
    ).model_copy(update={"heartbeat_interval": 1e6})
    documents = SqliteDocuments(tmp_path / "documents.db", sync="normal")
    async with Silence(settings, documents, offset) as world:
        await world.watch.look()
        yield world
    await documents.close()


async def test_a_silent_node_is_lost_and_comes_back(world: Silence) -> None:
    """It is lost when it was not heard of for the set time and its key is gone, and ready at its next heartbeat."""
    await world.leased()
    await world.passes(LOST_S + 10)
    assert (await world.node()).state is NodeState.READY  # the key is there
    await world.lapses()
    await world.passes(LOST_S + 10)
    assert await world.event() is NodeState.LOST
    assert (await world.node()).state is NodeState.LOST
    await world.beats()
    assert await world.event() is NodeState.READY
    found = await world.documents.get(NODES, "n1")
    assert found
    assert found.state is NodeState.READY


async def test_a_lost_node_that_is_drained_comes_back_drained(world: Silence) -> None:
    """Whether that was said before it was lost or meanwhile; what was resumed meanwhile comes back ready."""
    await world.leased()
    for ask, told, back in (
        (SCHEDULER_DRAIN, NodeState.DRAINING, NodeState.DRAINING),
        (SCHEDULER_RESUME, NodeState.READY, NodeState.READY),
    ):
        assert (await world.bus.request(ask, Ref(ref="n1"))).state is told
        assert await world.event() is told
        await lost_and_back(world, back)
    for ask, back in ((SCHEDULER_DRAIN, NodeState.DRAINING), (SCHEDULER_RESUME, NodeState.READY)):
        await lost_and_back(world, back, ask)


async def lost_and_back(world: Silence, back: NodeState, ask: Operation[Ref, Node] | None = None) -> None:
    """Lose the node, ask something of it, and have it come back."""
    await world.lapses()
    await world.passes(LOST_S + 10)
    assert await world.event() is NodeState.LOST
    if ask:
        assert (await world.bus.request(ask, Ref(ref="n1"))).state is NodeState.LOST
        assert await world.event() is NodeState.LOST
    await world.beats()
    assert await world.event() is back
    assert (await world.node()).state is back


async def test_a_node_that_beats_is_not_lost(world: Silence) -> None:
    """Each heartbeat begins the count anew."""
    await world.leased()
    for _ in range(4):
        await world.passes(LOST_S - 5)
        await world.beats()
        await world.lapses()
    assert (await world.node()).state is NodeState.READY
    assert world.nodes.empty()


async def test_a_confirmed_run_is_placed_again_when_its_lease_is_over(world: Silence) -> None:
    """Not a moment before the lease and the margin have passed since the last heartbeat that named it."""
    await world.leased()
    start = await world.started()
    await world.passes(20)
    await world.beats(runs=(start.run_id,))
    await world.lapses()
    await world.passes(LEASE_S + MARGIN_S - 10)
    assert await world.event() is NodeState.LOST
    assert await world.state(start.run_id) is PlacementState.CONFIRMED
    await world.passes(15)
    (lost,) = await world.hear("lost")
    assert lost.outcome is not None
    assert lost.outcome.reason is not None
    assert (lost.job_id, lost.outcome.reason.code) == (start.job_id, "node_lost")
    assert not (await world.confirm(start)).start


async def test_a_run_that_was_never_confirmed_is_placed_again_at_once(world: Silence) -> None:
    """It cannot have started; its agent is refused when it comes back."""
    await world.leased()
    await world.request()
    start = await world.next(world.starts)
    await world.hear("scheduled")
    await world.lapses()
    await world.passes(LOST_S + 10)
    await world.hear("lost")
    assert not (await world.confirm(start)).start


async def test_a_confirmation_counts_as_a_heartbeat(world: Silence) -> None:
    """A run that no heartbeat has named yet lives as long as one that was named when it was confirmed."""
    await world.leased()
    await world.request()
    start = await world.next(world.starts)
    await world.lapses()
    await world.passes(20)
    assert (await world.confirm(start)).start
    await world.passes(LEASE_S + MARGIN_S - 10)
    assert await world.state(start.run_id) is PlacementState.CONFIRMED
    await world.passes(15)
    assert await world.state(start.run_id) is PlacementState.ENDED


async def test_runs_of_a_host_that_is_alone_wait_for_it(world: Silence) -> None:
    """Without leases nothing is placed again, however long the node is lost."""
    await world.join()
    running = await world.started(cpu=0.5)
    await world.request(cpu=0.5)
    placed = await world.next(world.starts)
    await world.lapses()
    await world.passes(10 * LEASE_S)
    assert await world.event() is NodeState.LOST
    assert (await world.confirm(running)).start
    assert (await world.confirm(placed)).start


async def test_an_interruption_begins_all_counts_anew(world: Silence) -> None:
    """A reconnect, a new stream, and a leader that was held up itself: none of it is the node's silence."""
    await world.leased()
    start = await world.started()
    await world.lapses()
    for interrupt in (reconnected, wiped, held_up):
        await world.passes(LOST_S - 5)
        await interrupt(world)
    await world.passes(LOST_S - 5)
    assert (await world.node()).state is NodeState.READY
    assert await world.state(start.run_id) is PlacementState.CONFIRMED
    await world.passes(LEASE_S + MARGIN_S)
    assert (await world.node()).state is NodeState.LOST
    assert await world.state(start.run_id) is PlacementState.ENDED


async def reconnected(world: Silence) -> None:
    for call in world.scheduler.bus.on_reconnect:
        call()


async def wiped(world: Silence) -> None:
    """The count is long over when the leader looks again; that the stream is another is seen then."""
    await world.bus.js.delete_stream("KV_heartbeats")
    await world.scheduler.bus.declare()
    await world.passes(5)


async def held_up(world: Silence) -> None:
    world._offset[0] += 1000
    await world.watch.look()


async def test_nobody_is_lost_while_the_bucket_cannot_be_read(world: Silence) -> None:
    """What the leader cannot ask it does not assume."""
    await world.leased()
    await world.bus.js.delete_stream("KV_heartbeats")
    with pytest.raises(NatsUnavailable):
        await world.passes(LOST_S + 10)
    assert (await world.node()).state is NodeState.READY


async def test_a_heartbeat_that_the_leader_missed_is_found_under_its_key(world: Silence) -> None:
    """A key that is there keeps its node and the runs that it names."""
    await world.leased()
    start = await world.started()
    deaf = world.cluster.beats["n1"]
    await world.beats(runs=(start.run_id,))
    heard_of = world.watch._presence._nodes
    heard_of["n1"] -= LEASE_S
    world.watch._presence._runs.pop(start.run_id)
    world.cluster.beats["n1"] = deaf  # as if it had not been heard
    world.watch._presence._since -= 10 * LEASE_S
    await world.watch.look()
    assert (await world.node()).state is NodeState.READY
    assert await world.state(start.run_id) is PlacementState.CONFIRMED
    await world.lapses()
    await world.passes(LEASE_S)
    assert await world.state(start.run_id) is PlacementState.CONFIRMED


async def test_nothing_is_placed_on_a_lost_node(world: Silence) -> None:
    """It goes to one that is there, and a job that fits on the lost one only waits for it."""
    await world.leased("n1")
    await world.leased("n2", labels={"site": "b"})
    await world.lapses("n2")
    for _ in range(2):
        await world.passes(LOST_S - 5)
        await world.beats("n1")
    assert await world.event("n2") is NodeState.LOST
    await world.admit(Admission.QUEUE, node_labels={"site": "b"})
    await world.request(node_labels={"site": "b"})
    assert (await world.started(cpu=0.1)).node == "n1"
    await world.beats("n2", labels={"site": "b"})
    assert (await world.next(world.starts)).node == "n2"


async def test_a_node_that_was_lost_for_long_counts_no_more(world: Silence, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only such a node could hold is refused; where there is no other, nobody can tell."""
    await world.leased()
    await world.lapses()
    await world.passes(LOST_S + 10)
    await world.event()
    await world.admit(Admission.QUEUE)
    monkeypatch.setattr(snapshot, "COUNTS_FOR", -census.SAVE_EVERY)
    with pytest.raises(NoNodes):
        await world.admit(Admission.QUEUE)
    await world.leased("n2")
    with pytest.raises(Infeasible):
        await world.admit(Admission.QUEUE, cpu=64)


async def test_a_node_that_was_lost_for_very_long_has_left(world: Silence, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its document and its consumer go, unless something is placed there still; it may join again."""
    await world.leased()
    start = await world.started()
    await world.lapses()
    await world.passes(LOST_S + 10)
    assert await world.event() is NodeState.LOST
    monkeypatch.setattr(census, "LEFT_AFTER", -census.SAVE_EVERY)
    await world.passes(10)
    assert (await world.node()).state is NodeState.LOST
    assert (await world.confirm(start)).start
    await world.passes(LEASE_S + MARGIN_S)
    await world.passes(10)
    assert await world.event() is NodeState.LOST
    with pytest.raises(NotFound):
        await world.bus.request(SCHEDULER_NODE, Ref(ref="n1"))
    assert await world.documents.get(NODES, "n1") is None
    assert await world.bus.js.consumers_info("RUNS") == []
    await world.leased()


# --- jobs that only a node could run that is gone ---


async def reasons_of(world: Silence, job_id: str) -> list[WaitReason]:
    """Return why a job waits, once it does."""

    async def explained() -> Waiting | None:
        return (await world.bus.request(SCHEDULER_EXPLAIN, Explain(job_id=job_id))).waiting

    return list((await world.until(explained)).reasons)


async def fails(world: Silence, job_id: str) -> str:
    """Wait for a job's failure as `infeasible`; returns what is said of it."""
    while (told := await world.next(world.lifecycle)).event != "failed":
        pass
    assert (told.job_id, told.outcome is not None) == (job_id, True)
    assert told.outcome is not None
    assert told.outcome.reason is not None
    assert told.outcome.reason.code == "infeasible"
    return told.outcome.reason.message


async def test_what_only_a_node_could_run_that_is_gone_says_so_and_fails(
    world: Silence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the set time and not before."""
    request = await lonely(world)
    await world.reconciled()
    assert [reason.code for reason in await reasons_of(world, request.job_id)] == ["lost", "node_labels"]
    monkeypatch.setattr(snapshot, "COUNTS_FOR", -census.SAVE_EVERY)
    await world.reconciled()
    first, *others = await reasons_of(world, request.job_id)
    assert (first.code, first.count) == ("infeasible", 2)
    assert "joins within 600 s" in first.message
    assert {reason.code for reason in others} == {"lost", "node_labels"}
    await alone(world, 590)
    assert "joins within 10 s" in (await reasons_of(world, request.job_id))[0].message
    await alone(world, 10)
    assert "asks a node with the labels site=a" in await fails(world, request.job_id)
    assert await world.state(ids.run_id(request.job_id, 1)) is PlacementState.ENDED


async def test_it_starts_when_the_node_comes_back_in_time(world: Silence, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it does not fail for what was before."""
    request = await lonely(world)
    monkeypatch.setattr(snapshot, "COUNTS_FOR", -census.SAVE_EVERY)
    await world.reconciled()
    await alone(world, 590)
    await world.beats("n1", labels={"site": "a"})
    assert (await world.next(world.starts)).job_id == request.job_id
    await alone(world, 600)
    assert await world.state(ids.run_id(request.job_id, 1)) is PlacementState.PLACED


async def test_where_no_node_is_left_a_job_fails_when_the_last_has_left(
    world: Silence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it may come back, however long it is lost, the job waits for it."""
    await world.leased()
    await world.lapses()
    await world.passes(LOST_S + 10)
    request = await world.request()
    monkeypatch.setattr(snapshot, "COUNTS_FOR", -census.SAVE_EVERY)
    for _ in range(3):
        await world.reconciled()
        world._offset[0] += 600
    assert [reason.code for reason in await reasons_of(world, request.job_id)] == ["lost"]
    monkeypatch.setattr(census, "LEFT_AFTER", -census.SAVE_EVERY)
    await world.passes(10 + LOST_S + 10)
    assert world.cluster.nodes == {}
    await world.reconciled()
    assert [reason.code for reason in await reasons_of(world, request.job_id)] == ["infeasible", "no_nodes"]
    world._offset[0] += 600
    await world.reconciled()
    assert await fails(world, request.job_id) == "no node is known"


async def lonely(world: Silence) -> PlacementRequest:
    """Request a job that only the one of two nodes could run that is lost."""
    await world.leased("n1", labels={"site": "a"})
    await world.leased("n2")
    await world.lapses("n1")
    for _ in range(2):
        await world.passes(LOST_S - 5)
        await world.beats("n2")
    assert await world.event("n1") is NodeState.LOST
    return await world.request(node_labels={"site": "a"})


async def alone(world: Silence, seconds: float) -> None:
    """Let time pass for which one node is heard of, and do a round."""
    world._offset[0] += seconds
    await world.beats("n2")
    await world.reconciled()


# --- two hosts with one name ---


async def test_another_host_does_not_speak_for_a_node(world: Silence) -> None:
    """While the node is there, or its runs may be, the heartbeats of another host with its name count for nothing."""
    await world.leased()
    start = await world.started()
    await world.age(start.run_id, 60)
    for _ in range(3):
        await world.beat(home="another", incarnation="i2", lease=LEASE_S)
    await world.beats(runs=(start.run_id,))
    node: Node = world.cluster.nodes["n1"]
    assert (node.home, node.incarnation) == ("home of n1", "i1")
    assert await world.state(start.run_id) is PlacementState.CONFIRMED


async def test_another_host_gets_the_name_when_nothing_of_the_former_is_left(world: Silence) -> None:
    """First the node is lost, then its runs' leases lapse, and then who beats under its name joins."""
    await world.leased()
    start: StartRun = await world.started()
    await world.lapses()
    await world.passes(LOST_S + 10)
    assert await world.event() is NodeState.LOST
    await world.beat(home="another", incarnation="i2", lease=LEASE_S)
    await world.passes(LEASE_S + MARGIN_S)
    assert await world.state(start.run_id) is PlacementState.ENDED
    assert world.nodes.empty()
    await world.beats(home="another", incarnation="i2")
    assert await world.event() is NodeState.READY
    assert (await world.documents.get(NODES, "n1")).home == "another"  # type: ignore[union-attr]
    again = world.job.requested[start.job_id].but(attempt=2)
    await world.request(again)
    assert (await world.next(world.starts)).run_id == ids.run_id(start.job_id, 2)
