"""The scheduler over a real nats-server and real documents: placing, confirming, ending, canceling, admitting."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from gurney import clock, ids, runtoken
from gurney.documents.port import Where, Write
from gurney.documents.sqlite import SqliteDocuments
from gurney.errors import GurneyError, Infeasible, Invalid, NatsUnavailable, NoNodes, NoRoom, NoRuntime, NotFound
from gurney.model.common import Page, Ref
from gurney.model.job import Admission, JobState, Priority, Waiting
from gurney.model.map import InspectMap
from gurney.model.resources import Amount
from gurney.model.run import (
    Confirm,
    Explain,
    Heartbeat,
    Lifecycle,
    Node,
    NodeList,
    NodeState,
    Outcome,
    Placement,
    PlacementsSince,
    PlacementState,
    Release,
    RunEnded,
    StartRun,
)
from gurney.settings import GIB, Settings
from gurney.subjects import (
    SCHEDULER_CONFIRM,
    SCHEDULER_ENDED,
    SCHEDULER_EXPLAIN,
    SCHEDULER_INSPECT,
    SCHEDULER_NODE,
    SCHEDULER_NODES,
    SCHEDULER_PLACEMENTS,
    SCHEDULER_RELEASE,
)
from gurney.testing.nats import NatsServer
from services.scheduler import admission, reconcile
from services.scheduler.__main__ import build
from services.scheduler.plan import check
from services.scheduler.repository import NODES, PLACEMENTS
from tests.service.scheduler_world import DIR, World, a_request, an_admission, job_of

pytestmark = pytest.mark.needs("nats")

SECRET = "a secret of runs"


@pytest.fixture
async def documents(tmp_path: Path) -> AsyncIterator[SqliteDocuments]:
    documents = SqliteDocuments(tmp_path / "documents.db", sync="normal")
    yield documents
    await documents.close()


@pytest.fixture
def settings(nats_server: NatsServer, tmp_path: Path) -> Settings:
    return Settings(nats_url=nats_server.url, data=tmp_path, run_secret=SecretStr(SECRET), infeasible_after=0)


@pytest.fixture
async def world(settings: Settings, documents: SqliteDocuments) -> AsyncIterator[World]:
    async with World(settings, documents) as world:
        yield world


async def live(world: World) -> list[Placement]:
    states = [PlacementState.RESERVED, PlacementState.PLACED, PlacementState.CONFIRMED]
    return await world.scheduler.store.find(PLACEMENTS, Where("state", "in", states), sort=("id",))


# --- placing ---


async def test_a_job_is_placed_told_and_run_to_its_end(world: World) -> None:
    """A request becomes a placement, a start with a valid token, and lifecycle events whose ids can be derived."""
    await world.join()
    request = await world.request()
    start = await world.next(world.starts)
    run_id = ids.run_id(request.job_id, 1)
    assert (start.run_id, start.node, start.request) == (run_id, "n1", request.request)
    assert runtoken.verify(SECRET, start.token).run_id == run_id
    assert (await world.confirm(start)).start
    await world.report(start, "running")
    (scheduled, started) = await world.hear("scheduled", "started")
    await world.end(start, exit_code=0)
    (ended,) = await world.hear("succeeded")
    assert ended.outcome == Outcome(ending="succeeded", exit_code=0)
    assert [each.event_id for each in (scheduled, started, ended)] == [
        ids.job_event_id(request.job_id, 1, event) for event in ("scheduled", "started", "succeeded")
    ]
    assert scheduled.revision < started.revision < ended.revision
    assert scheduled.at <= started.at <= ended.at
    assert (await world.placement(run_id)).state is PlacementState.ENDED


async def test_what_finds_no_room_waits_until_there_is_some(world: World) -> None:
    """A job that does not fit is placed when another ends, and says meanwhile what is short."""
    await world.join()
    first = await world.started(cpu=2.0)
    second = await world.request(cpu=2.0)
    waiting = await world.until(lambda: explained(world, second.job_id))
    assert (waiting.position, waiting.reasons[0].code, waiting.reasons[0].count) == (1, "cpu_busy", 1)
    assert waiting.blocker
    assert (waiting.blocker.node, waiting.blocker.runs, waiting.blocker.run_ids) == ("n1", 1, ())
    named = (await world.bus.request(SCHEDULER_EXPLAIN, Explain(job_id=second.job_id, names=True))).waiting
    assert named
    assert named.blocker
    assert named.blocker.run_ids == (first.run_id,)
    await world.end(first)
    assert (await world.next(world.starts)).job_id == second.job_id
    assert await explained(world, second.job_id) is None


async def explained(world: World, job_id: str) -> Waiting | None:
    return (await world.bus.request(SCHEDULER_EXPLAIN, Explain(job_id=job_id))).waiting


async def test_many_requests_at_once_never_exceed_a_node(world: World) -> None:
    """Of forty jobs eight fit; each end lets one more in, until all have run, in order of age."""
    await world.join()
    requests = [a_request(cpu=0.25) for _ in range(40)]
    await asyncio.gather(*[world.request(request) for request in requests])
    seen: list[str] = []
    for _ in requests:
        start = await world.next(world.starts)
        assert check(world.cluster.snapshot(clock.now())) == []
        assert len(await live(world)) <= 8
        assert (await world.confirm(start)).start
        await world.end(start)
        seen.append(start.job_id)
    assert sorted(seen) == sorted(request.job_id for request in requests)


async def test_a_repeated_request_is_not_placed_again(world: World) -> None:
    """A message that comes twice, before or after the end, starts nothing."""
    await world.join()
    start = await world.started()
    request = world.job.requested[start.job_id]
    await world.tell(request)
    await world.end(start)
    await world.tell(request)
    other = await world.started()
    assert other.job_id != request.job_id
    assert [each.id for each in await live(world)] == [other.run_id]


async def test_an_old_request_is_asked_about(world: World) -> None:
    """A request from long ago counts only if its job still waits at this attempt."""
    await world.join()
    old = clock.now() - timedelta(minutes=6)
    waits, ended, retried, gone = (a_request(at=old, cpu=0.1) for _ in range(4))
    world.job.jobs = {
        waits.job_id: job_of(waits),
        ended.job_id: job_of(ended, JobState.FAILED),
        retried.job_id: job_of(retried).but(attempt=2),
    }
    for request in (gone, ended, retried, waits):
        await world.tell(request)
    assert (await world.next(world.starts)).job_id == waits.job_id
    assert len(await live(world)) == 1


async def test_a_lost_attempt_is_placed_again_elsewhere(world: World) -> None:
    """The next attempt has a run id of its own and avoids the node."""
    await world.join("n1", capacity=Amount(cpu=1, memory=GIB))
    await world.join("n2")
    start = await world.started()
    assert start.node == "n1"
    await world.end(start, "lost")
    again = world.job.requested[start.job_id].but(attempt=2, avoid=("n1",))
    await world.request(again)
    second = await world.next(world.starts)
    assert (second.run_id, second.node) == (ids.run_id(start.job_id, 2), "n2")


async def test_gpus_are_placed_by_uuid(world: World) -> None:
    """Two jobs on one node get a GPU each, a third waits for one."""
    await world.joined_with_gpus(2)
    starts = [await world.started(gpus=1) for _ in range(2)]
    assert [start.gpus for start in starts] == [("GPU-0",), ("GPU-1",)]
    third = await world.request(gpus=1)
    waiting = await world.until(lambda: explained(world, third.job_id))
    assert waiting.reasons[0].code == "gpus_busy"
    await world.end(starts[0])
    assert (await world.next(world.starts)).gpus == ("GPU-0",)


@pytest.mark.parametrize("how", ["canceled", "forgotten"])
async def test_what_was_kept_for_a_job_that_does_not_come_any_more_is_given_to_others(world: World, how: str) -> None:
    """A GPU that stays free for a wide job is placed as soon as that one waits no more; until then others are told."""
    await world.joined_with_gpus(2)
    starts = [await world.started(gpus=1) for _ in range(2)]
    wide, narrow = a_request(gpus=2), a_request(gpus=1)
    await world.tell(wide)
    await world.tell(narrow)
    await world.until(lambda: explained(world, narrow.job_id))
    await world.end(starts[0], "failed")  # of a success it would be known how short they are
    await world.until(lambda: reason(world, narrow.job_id, "booked"))
    if how == "canceled":
        await world.cancel(wide)
    else:
        world.job.requested = {narrow.job_id: narrow}
        await world.reconciled()
    assert (await world.next(world.starts)).job_id == narrow.job_id


async def reason(world: World, job_id: str, code: str) -> bool:
    waiting = await explained(world, job_id)
    return waiting is not None and any(each.code == code for each in waiting.reasons)


async def test_a_job_hears_why_it_waits(world: World) -> None:
    """After a moment without room a `waiting` event names the first reason."""
    await world.join()
    await world.started(cpu=2.0)
    request = await world.request(cpu=1.0)
    (waiting,) = await world.hear("waiting")
    assert (waiting.job_id, waiting.revision) == (request.job_id, 0)
    assert waiting.reason is not None
    assert waiting.reason.code == "cpu_busy"


# --- confirming and ending ---


async def test_a_start_is_confirmed_to_its_node_as_often_as_it_asks(world: World) -> None:
    """Only the node that was chosen may start, and only what is placed."""
    await world.join()
    await world.request()
    start = await world.next(world.starts)
    for wrong in (
        Confirm(run_id=start.run_id, node="n2", epoch=start.epoch),
        Confirm(run_id=start.run_id, node="n1", epoch=start.epoch + 1),
        Confirm(run_id=ids.run_id(start.job_id, 2), node="n1", epoch=start.epoch),
    ):
        answer = await world.bus.request(SCHEDULER_CONFIRM, wrong)
        assert not answer.start
        assert answer.message
    assert (await world.placement(start.run_id)).state is PlacementState.PLACED
    assert [(await world.confirm(start)).start for _ in range(2)] == [True, True]
    assert (await world.placement(start.run_id)).revision == 2
    await world.end(start)
    assert not (await world.confirm(start)).start


async def test_the_first_end_stays(world: World) -> None:
    """Later reports, of this node or another, and of unknown runs are answered and change nothing."""
    await world.join()
    start = await world.started()
    await world.bus.request(SCHEDULER_ENDED, RunEnded(run_id=start.run_id, node="n2", outcome=Outcome(ending="failed")))
    assert (await world.placement(start.run_id)).state is PlacementState.CONFIRMED
    await world.end(start)
    first = await world.placement(start.run_id)
    await world.end(start, "failed")
    await world.end(start.but(run_id=ids.run_id(ids.new_id("job"), 1)))
    assert await world.placement(start.run_id) == first


async def test_a_start_that_was_not_reported_yet_comes_with_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application that ends at once is told in one write: started, then ended."""
    monkeypatch.setattr("services.scheduler.runs.SETTLE_S", 1.0)
    await world.join()
    start = await world.started()
    await world.report(start, "running")

    async def noted() -> bool:
        return world.cluster.notes(start.run_id).running_since is not None

    await world.until(noted)
    await world.end(start)
    started, ended = await world.hear("started", "succeeded")
    assert started.revision < ended.revision
    placement = await world.placement(start.run_id)
    assert (placement.started_at, placement.revision) == (started.at, 3)


async def test_phases_are_told_and_repeated_counts_are_not(world: World) -> None:
    """Each new phase becomes a `progress` event; counts of the same phase wait."""
    await world.join()
    start = await world.started()
    await world.report(start, "pulling", done=1, total=9)
    await world.report(start, "pulling", done=2, total=9)
    await world.report(start, "staging")
    await world.report(start.but(node="n2"), "collecting")
    await world.report(start, "running")
    first, second, third = await world.hear("progress", "progress", "started")
    assert [each.phase.name for each in (first, second, third) if each.phase] == ["pulling", "staging", "running"]
    assert first.phase is not None
    assert (first.phase.done, first.revision) == (1, 0)


async def test_a_placement_says_again_what_it_said(world: World) -> None:
    """The messages that the job service asks for are those that were sent."""
    await world.join()
    start = await world.started()
    await world.report(start, "running")
    (started,) = await world.hear("started")
    await world.end(start)
    (ended,) = await world.hear("succeeded")
    runs = (start.run_id, ids.run_id(ids.new_id("job"), 1))
    told = await world.bus.request(SCHEDULER_PLACEMENTS, PlacementsSince(runs=runs))
    assert told.items[1:] == (started, ended)
    assert told.items[0].event == "scheduled"


# --- canceling ---


async def test_a_cancel_before_the_placement_wins(world: World) -> None:
    """A canceled placement stands where none was, and no later request brings the job back."""
    request = await world.request()
    await world.until(lambda: explained(world, request.job_id))
    await world.cancel(request)
    (canceled,) = await world.hear("canceled")
    assert canceled.outcome is not None
    assert (canceled.outcome.ending, canceled.node) == ("canceled", None)
    assert await explained(world, request.job_id) is None
    await world.tell(request)
    await world.join()
    other = await world.started()
    assert other.job_id != request.job_id
    assert (await world.placement(ids.run_id(request.job_id, 1))).state is PlacementState.CANCELED


async def test_a_cancel_before_the_confirmation_refuses_it(world: World) -> None:
    """The agent is told to stop and may not start; its room is free again."""
    await world.join()
    request = await world.request(cpu=2.0)
    start = await world.next(world.starts)
    await world.cancel(request)
    await world.hear("scheduled", "canceled")
    assert (await world.next(world.stops)).run_id == start.run_id
    assert not (await world.confirm(start)).start
    await world.started(cpu=2.0)


async def test_a_cancel_at_the_moment_of_the_placement_is_decided_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancel that saw no placement finds the one that was written meanwhile, and cancels that."""
    await world.join()
    request = await world.request()
    start = await world.next(world.starts)
    ledger = world.reconciler._ledger
    real, late = ledger.change, [True]

    async def change(*arguments: object) -> Placement:
        if late:
            late.pop()
            raise NotFound("not yet")
        return await real(*arguments)  # type: ignore[no-any-return]

    monkeypatch.setattr(ledger, "change", change)
    await world.cancel(request)
    await world.becomes(start.run_id, PlacementState.CANCELED)


async def test_a_cancel_of_a_run_stops_it(world: World) -> None:
    """A running job is stopped once; how it ends is what its agent says."""
    await world.join()
    start = await world.started()
    request = world.job.requested[start.job_id]
    await world.cancel(request)
    assert (await world.next(world.stops)).run_id == start.run_id
    assert (await world.confirm(start)).start
    await world.cancel(request)
    await world.end(start)
    (ended,) = await world.hear("succeeded")
    assert ended.job_id == start.job_id
    assert world.stops.empty()


# --- admission ---


async def test_fifty_at_once_never_exceed_the_room(world: World) -> None:
    """Of fifty simultaneous requests with `reject` exactly as many get in as fit."""
    await world.join(capacity=Amount(cpu=2, memory=8 * GIB))
    answers = await asyncio.gather(*[world.admit(cpu=0.3) for _ in range(50)], return_exceptions=True)
    assert sum(isinstance(answer, str) for answer in answers) == 6
    assert sum(isinstance(answer, NoRoom) for answer in answers) == 44
    assert len(await live(world)) == 6
    assert check(world.cluster.snapshot(clock.now())) == []


async def test_a_refusal_says_what_is_short_and_when_to_come_again(world: World) -> None:
    """`NoRoom` names the resource and has a time."""
    await world.join()
    await world.admit(cpu=2.0)
    with pytest.raises(NoRoom, match="asks 1 cores, 0 cores are free") as refused:
        await world.admit(cpu=1.0)
    assert refused.value.retry_after_s


async def test_a_reservation_becomes_the_placement_of_its_job(world: World) -> None:
    """Room that is held is the job's, and is not counted twice."""
    await world.join()
    request = a_request(cpu=2.0)
    await world.admit(cpu=2.0, job_id=request.job_id)
    await world.admit(cpu=2.0, job_id=request.job_id)
    run_id = ids.run_id(request.job_id, 1)
    assert (await world.placement(run_id)).state is PlacementState.RESERVED
    await world.request(request)
    start = await world.next(world.starts)
    (scheduled,) = await world.hear("scheduled")
    assert (start.run_id, scheduled.revision) == (run_id, 2)
    assert (await world.confirm(start)).start


async def test_a_released_reservation_leaves_nothing(world: World) -> None:
    """Its room is free at once, however often it is released; a placement is not released."""
    await world.join()
    job_id = await world.admit(cpu=2.0)
    for _ in range(2):
        await world.bus.request(SCHEDULER_RELEASE, Release(job_id=job_id))
    start = await world.started(cpu=2.0)
    await world.bus.request(SCHEDULER_RELEASE, Release(job_id=start.job_id))
    assert [each.id for each in await live(world)] == [start.run_id]


async def test_reject_takes_no_room_that_a_waiting_job_could_use(world: World) -> None:
    """A job that waits goes first; one that cannot use the room, or is of a lower priority, does not."""
    await world.join(capacity=Amount(cpu=4, memory=8 * GIB))
    await world.started(cpu=3.0)
    waiting = await world.request(cpu=2.0)
    await world.until(lambda: explained(world, waiting.job_id))
    await world.admit(cpu=0.5)
    desk = world.reconciler._desk
    desk._placer.want(a_request(cpu=0.25))  # not evaluated before this turn of the loop ends
    with pytest.raises(NoRoom):
        await desk.admit(an_admission(cpu=0.5))
    await world.next(world.starts)
    desk._placer.want(a_request(cpu=0.25, priority=Priority.LOWER))
    assert (await desk.admit(an_admission(cpu=0.25))).reserved


async def test_a_dry_run_writes_nothing(world: World) -> None:
    """It is refused as the real one would be, and holds no room."""
    await world.join()
    await world.admit(cpu=2.0, dry_run=True)
    assert await live(world) == []
    await world.admit(cpu=2.0)
    with pytest.raises(NoRoom):
        await world.admit(cpu=2.0, dry_run=True)


@pytest.mark.parametrize("admission", Admission)
async def test_what_never_fits_is_refused_in_both_ways(world: World, admission: Admission) -> None:
    """The error names each field that no node satisfies; without a node nobody can tell."""
    with pytest.raises(NoNodes):
        await world.admit(admission)
    await world.join()
    with pytest.raises(Infeasible, match="asks 64 cores, the node has 2 cores") as refused:
        await world.admit(admission, cpu=64.0)
    assert [each.field for each in refused.value.errors] == ["resources.cpu"]
    with pytest.raises(Infeasible, match="GPUs"):
        await world.admit(admission, gpus=1)
    assert await live(world) == []


async def test_a_queued_job_is_admitted_without_a_write(world: World) -> None:
    """`queue` promises a place in the queue, which the job document is."""
    await world.join()
    await world.admit(cpu=2.0)
    await world.admit(Admission.QUEUE, cpu=2.0)
    assert len(await live(world)) == 1


# --- nodes ---


async def test_a_node_joins_with_its_consumer_and_shows_its_room(world: World) -> None:
    """When the node is known its commands have a consumer; used and free are derived from placements."""
    await world.join(labels={"site": "a"}, images=("sha256:0",))
    consumers = await world.bus.js.consumers_info("RUNS")
    assert [each.name for each in consumers] == ["agent-n1"]
    await world.started(cpu=0.5)
    node = await world.node()
    assert (node.used.cpu, node.free.cpu, node.free.memory) == (0.5, 1.5, 7 * GIB)
    assert (node.state, node.labels, node.images) == (NodeState.READY, {"site": "a"}, ("sha256:0",))
    assert await world.bus.request(SCHEDULER_NODE, Ref(ref="n1")) == await world.node()
    with pytest.raises(NotFound):
        await world.bus.request(SCHEDULER_NODE, Ref(ref="n2"))


async def test_a_job_goes_where_its_map_is(world: World) -> None:
    """Of nodes that are alike the one is taken whose heartbeats name the MAP's digest, from the next one on."""
    await world.join("n1")
    await world.join("n2", images=("0",))
    first = await world.started()
    assert first.node == "n2"
    await world.end(first)
    await world.beat("n1", images=("0",))
    await world.until(lambda: has_images(world, "n1"))
    second = await world.started()
    assert second.node == "n1"
    await world.end(second)
    await world.beat("n1")
    await world.until(lambda: has_images(world, "n1", ()))
    assert (await world.started()).node == "n2"


async def has_images(world: World, name: str, images: tuple[str, ...] = ("0",)) -> bool:
    return (await world.node(name)).images == images


async def test_nodes_come_in_pages(world: World) -> None:
    """A page names the next until none is left."""
    for name in ("n2", "n3", "n1"):
        await world.join(name)
    first: Page[Node] = await world.bus.request(SCHEDULER_NODES, NodeList(limit=2))
    last: Page[Node] = await world.bus.request(SCHEDULER_NODES, NodeList(limit=2, cursor=first.next_cursor))
    assert [node.id for node in (*first.items, *last.items)] == ["n1", "n2", "n3"]
    assert last.next_cursor is None
    with pytest.raises(Invalid):
        await world.bus.request(SCHEDULER_NODES, NodeList(cursor="x"))


async def test_heartbeats_that_say_nothing_new_cost_no_write(world: World) -> None:
    """A node's document changes with the node."""
    await world.join()
    await world.beat()
    await world.beat(labels={"site": "b"})

    async def labelled() -> Node | None:
        found = await world.documents.get(NODES, "n1")
        return found if found and found.labels else None

    assert (await world.until(labelled)).revision == 2


async def test_a_forged_heartbeat_is_not_heard(world: World) -> None:
    """A node speaks under its own key only, and in words that can be read."""
    await world.bus.publish("$KV.heartbeats.n9", b"{}")
    forged = Heartbeat(node="n2", incarnation="i", at=clock.now(), capacity=Amount(cpu=2), kinds=(DIR,))
    await world.bus.publish("$KV.heartbeats.n9", forged.encode())
    await world.beat("n1")
    assert (await world.next(world.nodes)).id == "n1"
    assert list(world.cluster.nodes) == ["n1"]


async def test_a_heartbeat_from_before_the_start_is_found(settings: Settings, documents: SqliteDocuments) -> None:
    """A node whose heartbeats came while nobody listened is known at once."""
    async with World(settings, documents) as world:
        await world.join()
    async with World(settings, SqliteDocuments(settings.data / "others.db")) as fresh:
        await fresh.reconciled()
        assert (await fresh.next(fresh.nodes)).id == "n1"
        await fresh.documents.close()


async def test_nothing_is_placed_on_a_node_that_is_silent(world: World) -> None:
    """A job waits for the node to be heard of again."""
    await world.join()
    silent = world.cluster.nodes["n1"]
    world.cluster.nodes["n1"] = silent.but(last_seen_at=clock.now() - timedelta(minutes=1))
    request = await world.request()
    waiting = await world.until(lambda: explained(world, request.job_id))
    assert waiting.reasons[0].code == "silent"
    await world.beat()
    assert (await world.next(world.starts)).job_id == request.job_id


async def test_an_inspection_goes_to_a_node_that_can(world: World) -> None:
    """The node runs such MAPs and was not tried yet, where there is a choice."""
    question = InspectMap(id=ids.new_id("ins"), map_id="map_0", urn=f"{DIR}a")
    with pytest.raises(NoNodes):
        await world.bus.request(SCHEDULER_INSPECT, question)
    await world.join("n1")
    await world.join("n2")
    await world.join("n3", kinds=("urn:oci:",))
    answer = await world.bus.request(SCHEDULER_INSPECT, question.but(avoid=("n1",)))
    assert (answer.node, (await world.next(world.inspections)).id) == ("n2", question.id)
    again = question.but(id=ids.new_id("ins"), avoid=("n1", "n2"))
    assert (await world.bus.request(SCHEDULER_INSPECT, again)).node in {"n1", "n2"}
    with pytest.raises(NoRuntime):
        await world.bus.request(SCHEDULER_INSPECT, question.but(urn="urn:other:x"))


async def test_a_run_that_its_agent_no_longer_has_is_lost(world: World) -> None:
    """Two heartbeats that do not name it, long enough after the confirmation, end it."""
    await world.join()
    gone, kept = await world.started(), await world.started()
    for start in (gone, kept):
        await world.age(start.run_id, 16)
    await world.beat(runs=(kept.run_id,))
    await world.beat(runs=(kept.run_id,))
    (lost,) = await world.hear("lost")
    assert lost.job_id == gone.job_id
    assert lost.outcome is not None
    assert lost.outcome.reason is not None
    assert lost.outcome.reason.code == "node_lost"
    assert (await world.placement(kept.run_id)).state is PlacementState.CONFIRMED


async def test_a_run_that_is_over_is_ended_where_it_lives_on(world: World) -> None:
    """One that two heartbeats name. What lives, what just ended, and what a living job may need is left alone."""
    await world.join(capacity=Amount(cpu=8, memory=8 * GIB))
    alive, over, forgotten, unknown = [await world.started(cpu=0.1) for _ in range(4)]
    for start in (over, forgotten, unknown):
        await world.end(start)
    for start in (forgotten, unknown):
        await world.becomes(start.run_id, PlacementState.ENDED)
        await world.scheduler.store.remove(PLACEMENTS, await world.placement(start.run_id))
    world.job.live.discard(forgotten.job_id)
    runs = tuple(start.run_id for start in (alive, over, forgotten, unknown))
    await world.beat(runs=runs)
    await world.beat(runs=(alive.run_id, unknown.run_id))
    await world.beat(runs=(alive.run_id, unknown.run_id))
    await world.beat(runs=runs)
    await world.node()
    assert world.stops.empty()
    await world.beat(runs=runs)
    stops = [await world.next(world.stops) for _ in range(2)]
    assert {stop.run_id for stop in stops} == {over.run_id, forgotten.run_id}
    assert {(stop.node, stop.epoch, stop.reason) for stop in stops} == {("n1", 1, "fenced")}
    await world.end(over, "canceled")
    assert (await world.placement(over.run_id)).outcome == Outcome(ending="succeeded")
    assert world.stops.empty()


async def test_what_a_former_leader_has_just_written_is_not_ended(world: World) -> None:
    """Its run may be on its way: documents are asked, not memory alone."""
    await world.join()
    start = await world.started()
    world.cluster.forget(start.run_id)
    for _ in range(3):
        await world.beat(runs=(start.run_id,))
    other = await world.started(cpu=0.5)
    for _ in range(2):
        await world.beat(runs=(start.run_id, other.run_id))
    await world.node()
    assert world.stops.empty()


# --- making up what is missing ---


async def test_jobs_that_no_message_told_of_are_placed_and_canceled(world: World) -> None:
    """What the job service is owed is found in its documents, page by page."""
    await world.join()
    waits = [a_request(cpu=0.1) for _ in range(3)]
    gives_up = a_request(cpu=0.1).but(cancel_requested_at=clock.now())
    world.job.requested = {request.job_id: request for request in (*waits, gives_up)}
    world.job.canceling = {gives_up.job_id: gives_up}
    await world.reconciled()
    started = {(await world.next(world.starts)).job_id for _ in waits}
    assert started == {request.job_id for request in waits}
    await world.becomes(ids.run_id(gives_up.job_id, 1), PlacementState.CANCELED)


async def test_a_job_that_no_longer_waits_is_dropped(world: World) -> None:
    """A repeated event that brings an ended job back does not outlive the next round."""
    await world.join()
    await world.started(cpu=2.0)
    ghost = a_request(cpu=1.0)
    await world.tell(ghost)
    await world.until(lambda: explained(world, ghost.job_id))
    await world.reconciled()
    assert await explained(world, ghost.job_id) is None


async def test_commands_without_an_answer_are_sent_again(world: World) -> None:
    """A start until it is confirmed and a stop until the run ends, and neither before ten seconds."""
    await world.join()
    await world.request()
    start = await world.next(world.starts)
    await world.reconciled()
    await world.age(start.run_id, 11)
    await world.reconciled()
    assert await world.next(world.starts) == start
    assert (await world.confirm(start)).start
    await world.cancel(world.job.requested[start.job_id])
    stop = await world.next(world.stops)
    await world.age(start.run_id, 11)
    world.cluster.notes(start.run_id).sent_at = None
    await world.reconciled()
    assert await world.next(world.stops) == stop
    await world.end(start, "canceled")
    await world.reconciled()
    assert world.starts.empty()
    assert world.stops.empty()


async def test_a_reservation_without_a_job_is_given_back(world: World) -> None:
    """After ten seconds the job is asked for; only one that does not exist loses its room."""
    await world.join()
    kept = a_request(cpu=0.5)
    world.job.jobs = {kept.job_id: job_of(kept)}
    await world.admit(cpu=0.5, job_id=kept.job_id)
    lost = await world.admit(cpu=0.5)
    fresh = await world.admit(cpu=0.5)
    for job_id in (kept.job_id, lost):
        await world.age(ids.run_id(job_id, 1), 11)
    await world.reconciled()
    assert {each.job_id for each in await live(world)} == {kept.job_id, fresh}


async def test_a_reservation_is_given_back_when_its_time_is_over(
    settings: Settings, documents: SqliteDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room of a job that never came is free then, not only with the next of the rounds, which are far apart."""
    for module in (admission, reconcile):
        monkeypatch.setattr(module, "RESERVED_FOR_S", 0.3)
    world = World(settings, documents)
    world.scheduler._parts.reconcile = world.reconciler
    async with world:
        await world.join()
        reserved = await world.admit(cpu=2.0)

        async def is_free() -> bool:
            return await world.documents.get(PLACEMENTS, ids.run_id(reserved, 1)) is None

        await world.until(is_free)
        assert (await world.started(cpu=2.0)).job_id != reserved


async def test_what_no_node_can_hold_any_more_fails(world: World) -> None:
    """A job that could run once fails as `infeasible` after the set time, with what is short."""
    await world.join()
    blocker = await world.started(cpu=2.0)
    request = await world.request(cpu=2.0)
    await world.until(lambda: explained(world, request.job_id))
    await world.beat(capacity=Amount(cpu=1, memory=GIB))

    async def shrunk() -> bool:
        return (await world.node()).capacity.cpu == 1

    await world.until(shrunk)
    await world.reconciled()
    failed = await world.until(lambda: next_of(world, "failed"))
    assert failed.job_id == request.job_id
    assert failed.outcome is not None
    assert failed.outcome.reason is not None
    assert failed.outcome.reason.code == "infeasible"
    assert "asks 2 cores" in failed.outcome.reason.message
    assert (await world.placement(blocker.run_id)).state is PlacementState.CONFIRMED


async def next_of(world: World, event: str) -> Lifecycle | None:
    """Return the next lifecycle event; None while it is another one."""
    heard = await world.next(world.lifecycle)
    return heard if heard.event == event else None


async def test_old_placements_go_when_their_job_has_ended(world: World) -> None:
    """Documents do not grow without bound; a job that has not folded its end keeps its placement."""
    await world.join()
    starts: list[StartRun] = [await world.started(cpu=0.1) for _ in range(3)]
    for start in starts:
        await world.end(start)
    folded, unfolded, fresh = (start.run_id for start in starts)
    for run_id in (folded, unfolded):
        await world.age(run_id, 11 * 60)
    world.job.live = {starts[1].job_id}
    world.job.requested = {}
    await world.reconciled()
    world.reconciler._steadiness._since -= 10 * 60
    await world.reconciled()
    found = await world.documents.get_many(PLACEMENTS, (folded, unfolded, fresh))
    assert {each.id for each in found} == {unfolded, fresh}


async def test_a_service_that_is_away_stops_no_other_part(world: World) -> None:
    """A round does what it can and then says what failed."""
    await world.join()
    await world.job.service.__aexit__()
    request = await world.request(cpu=64.0)
    await world.until(lambda: explained(world, request.job_id))
    with pytest.raises(NatsUnavailable):
        await world.reconciled()
    assert (await world.hear("failed"))[0].job_id == request.job_id


# --- taking over ---


async def test_a_new_leader_takes_over_what_is_live(settings: Settings, documents: SqliteDocuments) -> None:
    """After a restart the epoch has grown, starts come anew under it, and room that is held stays held."""
    async with World(settings, documents) as world:
        await world.join()
        running = await world.started(cpu=1.0)
        await world.request(cpu=0.5)
        placed = await world.next(world.starts)
        await world.admit(cpu=0.5)
    async with World(settings, documents) as world:
        anew = await world.next(world.starts)
        assert (anew.run_id, anew.epoch) == (placed.run_id, placed.epoch + 1)
        assert {each.epoch for each in await live(world)} == {anew.epoch}
        with pytest.raises(NoRoom):
            await world.admit(cpu=0.5)
        assert (await world.confirm(running)).start
        assert (await world.confirm(placed)).start
        assert (await world.placement(placed.run_id)).revision == 3
        await world.end(running)
        assert (await world.node()).used.cpu == 1.0


@pytest.mark.parametrize("fault", [Invalid("away"), RuntimeError("a defect")])
async def test_a_placement_whose_write_fails_is_decided_again(
    world: World, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """When the store is away for a moment, or something is wrong with it, the job waits, and is placed afterwards."""
    await world.join()
    real = world.documents.cas
    fails = [True]

    async def cas(writes: Sequence[Write]) -> list[GurneyError | None]:
        if fails and any(write.collection is PLACEMENTS for write in writes):
            fails.pop()
            if isinstance(fault, GurneyError):
                return [fault for _ in writes]
            raise fault
        return await real(writes)

    monkeypatch.setattr(world.documents, "cas", cas)
    request = await world.request(cpu=2.0)
    start = await world.next(world.starts)
    assert (start.job_id, fails) == (request.job_id, [])
    assert [each.id for each in await live(world)] == [start.run_id]


async def test_without_the_secret_of_runs_it_does_not_start(settings: Settings, documents: SqliteDocuments) -> None:
    """A scheduler that could place nothing says so at once."""
    service = build(settings.model_copy(update={"run_secret": SecretStr("")}), documents=documents)
    with pytest.raises(Invalid, match="GURNEY_RUN_SECRET"):
        async with service:
            pass
