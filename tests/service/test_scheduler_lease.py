"""Several schedulers over one nats-server and one store: one leads, the others stand by and take over."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from pydantic import SecretStr

from gurney import clock, ids
from gurney.bus import Bus
from gurney.documents.port import Write
from gurney.documents.sqlite import SqliteDocuments
from gurney.errors import GurneyError, NatsUnavailable, StoreUnavailable, Unavailable
from gurney.model.resources import Amount
from gurney.model.run import Confirm, Leadership, NodeList, Outcome, Placement, PlacementState, StartRun
from gurney.settings import Settings
from gurney.subjects import SCHEDULER_NODES
from gurney.testing.nats import NatsServer
from services.scheduler import campaign, lease, machine, process
from services.scheduler.lease import LEADER
from services.scheduler.repository import LEASE, PLACEMENTS
from services.scheduler.tenure import Deposed
from tests.service.scheduler_rivals import Rival, Rivalry, is_led, let_go, noted_rivals
from tests.service.scheduler_world import a_request

pytestmark = pytest.mark.needs("nats")

SHORT_S = 1.5
#: What is promised of a standby.
WITHIN_S = 5.0


class Store(SqliteDocuments):
    """One scheduler's view of the store, which can be away."""

    is_away = False

    def __init__(self, documents: SqliteDocuments) -> None:
        self.__dict__ = documents.__dict__

    async def cas(self, writes: Sequence[Write]) -> list[GurneyError | None]:
        if type(self).is_away:
            return [StoreUnavailable("the store is away") for _ in writes]
        return await super().cas(writes)


@pytest.fixture
async def documents(tmp_path: Path) -> AsyncIterator[SqliteDocuments]:
    documents = SqliteDocuments(tmp_path / "documents.db", sync="normal")
    yield documents
    await documents.close()


@pytest.fixture
async def world(
    nats_server: NatsServer, tmp_path: Path, documents: SqliteDocuments, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Rivalry]:
    settings = Settings(
        nats_url=nats_server.url,
        data=tmp_path,
        run_secret=SecretStr("a secret of runs"),
        request_timeout=1.0,
    ).model_copy(update={"heartbeat_interval": 60.0})
    async with Rivalry(settings, documents, noted_rivals(monkeypatch)) as world:
        yield world


# --- standing by and taking over ---


async def test_a_standby_answers_nothing(world: Rivalry) -> None:
    """Without a leader a question is answered by 503 at once; with one, by it alone."""
    await documents_are_open(world)
    await world.documents.cas([Write(LEASE, LEADER, 0, Leadership(id=LEADER, epoch=4, holder="other"))])
    standby = await world.rival()
    with pytest.raises(NatsUnavailable):
        await world.bus.request(SCHEDULER_NODES, NodeList())
    assert standby.tenure.epoch == 0
    found = await world.documents.get(LEASE, LEADER)
    assert found
    await world.documents.cas([Write(LEASE, LEADER, 1, found.next(released=True))])
    await world.leads(standby, 5)


async def documents_are_open(world: Rivalry) -> None:
    await world.documents.open([LEASE])


async def test_a_leader_that_ends_lets_go(world: Rivalry) -> None:
    """A standby leads at once, long before the term is over, and goes on with what is placed."""
    first = await world.leader()
    await world.join()
    running, placed = await placed_and_running(world)
    second = await world.rival()
    await first.stop()
    await world.leads(second, 2)
    anew = await world.next(world.starts)
    assert (anew.run_id, anew.epoch) == (placed.run_id, 2)
    assert await world.granted(anew)
    assert await world.granted(running)
    assert {each.epoch for each in await live(world)} == {2}
    assert first.tenure.leads is False


async def placed_and_running(world: Rivalry) -> tuple[StartRun, StartRun]:
    running = await world.started(cpu=0.5)
    await world.request(cpu=0.5)
    return running, await world.next(world.starts)


async def live(world: Rivalry) -> list[Placement]:
    found = [await world.documents.get(PLACEMENTS, ids.run_id(job, 1)) for job in world.job.requested]
    return [each for each in found if each and each.live]


async def test_a_leader_that_renews_keeps_the_lease(world: Rivalry) -> None:
    """However often its term passes, a standby stays one."""
    first = await world.leader(SHORT_S)
    second = await world.rival(SHORT_S)
    until = clock.monotonic() + 2.5 * SHORT_S
    while clock.monotonic() < until:
        await asyncio.sleep(0.05)
        assert first.tenure.leads
    assert second.tenure.epoch == 0


async def test_a_lease_that_is_not_renewed_is_taken(world: Rivalry) -> None:
    """A standby that saw the lease unchanged for a term leads under the next epoch."""
    await world.leader()
    second = await world.rival(SHORT_S)
    await world.leads(second, 2)


async def test_a_leader_on_another_host_that_died_is_followed_within_five_seconds(
    world: Rivalry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of it there is nothing but documents: its successor keeps what runs, sends starts anew, and places what waits."""
    term = world.settings.leader_term
    monkeypatch.setattr(process, "own", lambda: "")  # nobody sees from here whether it has ended
    first = await world.leader(term)
    await world.join()
    running, placed = await placed_and_running(world)
    second = await world.rival(term)
    await asyncio.sleep(0.3 * term)  # so that it has been seen to renew
    assert first.tenure.leads
    monkeypatch.setattr(campaign.Campaign, "_give_up", keep)
    await first.stop()
    died = clock.monotonic()
    waiting = a_request(cpu=1.0)
    world.job.requested[waiting.job_id] = waiting  # and no message tells of it
    await world.leads(second, 2)
    anew = await world.next(world.starts)
    assert (anew.run_id, anew.epoch) == (placed.run_id, 2)
    assert await world.granted(running)
    assert second.reconcile
    await second.reconcile()
    next_ = await world.next(world.starts)
    assert (next_.job_id, next_.epoch) == (waiting.job_id, 2)
    assert clock.monotonic() - died < WITHIN_S


async def keep(*_: object) -> None:
    """Do not let go of the lease."""


async def test_a_process_of_this_host_that_has_ended_is_not_waited_for(world: Rivalry) -> None:
    """Its lease is taken at once, whatever its term."""
    here = await asyncio.to_thread(process.own)
    gone = " ".join((*here.split(" ")[:-1], "1"))
    await documents_are_open(world)
    await world.documents.cas([Write(LEASE, LEADER, 0, Leadership(id=LEADER, epoch=1, holder="o", process=gone))])
    await world.leads(await world.rival(), 2)


async def test_what_a_dead_leader_left_unpublished_is_published(world: Rivalry) -> None:
    """Its successor sends at once what it wrote and did not send."""
    first = await world.leader()
    await world.join()
    start = await world.started()
    second = await world.rival()
    written = await world.documents.get(PLACEMENTS, start.run_id)
    assert written
    over = machine.ended(written, "n1", Outcome(ending="succeeded"), clock.now())
    assert over
    assert first.reconcile
    events = first.reconcile._effects.news(written, over)
    await world.documents.cas([Write(PLACEMENTS, over.id, written.revision, over, tuple(events))])
    await let_go(world)
    await world.hear("succeeded")
    await world.leads(second, 2)


async def test_a_frozen_leader_takes_no_question_away(world: Rivalry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is open still, and every question is answered by the one who leads."""
    with monkeypatch.context() as patch:
        patch.setattr(Bus, "_answering_task", lambda *_: ignore)
        await world.rival()
        await world.until(lambda: world.documents.get(LEASE, LEADER))
        await world.until(lambda: answers_are_served(world))
    await let_go(world)
    leader = await world.rival()
    await world.until(lambda: is_led(leader))
    await world.until(lambda: answers_are_served(world))
    for _ in range(20):
        await world.bus.request(SCHEDULER_NODES, NodeList())


async def ignore(request: object) -> None:
    del request


async def answers_are_served(world: Rivalry) -> bool:
    """Tell whether somebody hears the questions, frozen or not."""
    try:
        await world.bus.request(SCHEDULER_NODES, NodeList(), within=0.2)
    except NatsUnavailable as error:
        return "NoResponders" not in str(error)
    return True


# --- a leader that cannot hold its lease ---


async def test_a_leader_that_cannot_renew_stops_in_time(
    world: Rivalry, documents: SqliteDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody leads while the store is away; when it is back, one does, under the next epoch."""
    leader = await world.leader(SHORT_S, Store(documents))
    asked = leader.tenure._until - lease.ACT_FOR * SHORT_S
    monkeypatch.setattr(Store, "is_away", True)
    await leader.tenure.over()
    assert clock.monotonic() < asked + 2 * SHORT_S
    await world.until(lambda: nobody_answers(world))
    monkeypatch.setattr(Store, "is_away", False)
    await world.leads(leader, 2)


async def nobody_answers(world: Rivalry) -> bool:
    try:
        await world.bus.request(SCHEDULER_NODES, NodeList())
    except Unavailable:
        return True
    return False


async def test_a_leader_that_agents_have_outlived_raises_its_epoch(world: Rivalry) -> None:
    """When documents were put back, agents know of newer leaders; the scheduler leads again above those."""
    leader = await world.leader()
    await world.beat(epoch=41)
    await world.leads(leader, 42)
    await world.join()
    assert (await world.started()).epoch == 42


# --- a former leader that does not know ---


async def zombie_and_leader(world: Rivalry) -> tuple[Rival, Rival]:
    """Return a leader that was taken over from and does not know, and the one who leads."""
    zombie = await world.leader()
    await world.join()
    leader = await world.successor()
    assert zombie.tenure.leads
    return zombie, leader


async def test_a_former_leader_confirms_nothing(world: Rivalry) -> None:
    """Asked about a placement that was taken over it sees that it leads no more."""
    zombie = await world.leader()
    await world.join()
    await world.request()
    old = await world.next(world.starts)
    leader = await world.successor()
    new = await world.next(world.starts)
    assert (new.run_id, new.epoch) == (old.run_id, 2)
    assert zombie.reconcile
    question = Confirm(run_id=old.run_id, node="n1", epoch=1)
    with pytest.raises(Deposed):
        await zombie.reconcile._runs.confirm(question)
    assert not zombie.tenure.leads
    assert (await world.documents.get(PLACEMENTS, old.run_id)).state is PlacementState.PLACED  # type: ignore[union-attr]
    assert await world.granted(old)
    assert leader.tenure.leads


async def test_a_newer_epoch_in_a_question_ends_a_former_leader(world: Rivalry) -> None:
    """It does not even look at the placement, which it may not have heard of."""
    zombie, _ = await zombie_and_leader(world)
    assert zombie.reconcile
    with pytest.raises(Deposed):
        await zombie.reconcile._runs.confirm(Confirm(run_id=ids.run_id(ids.new_id("job"), 1), node="n1", epoch=2))
    assert not zombie.tenure.leads


async def test_no_end_or_cancel_is_recorded_by_a_former_leader(world: Rivalry) -> None:
    """What it is told is told again to the one who leads."""
    zombie = await world.leader()
    await world.join()
    start = await world.started()
    await world.successor()
    assert zombie.reconcile
    runs = zombie.reconcile._runs
    for late in (
        runs.end(start.run_id, "n1", Outcome(ending="failed")),
        runs.cancel(start.job_id, 1),
    ):
        with pytest.raises(Deposed):
            await late
    found = await world.documents.get(PLACEMENTS, start.run_id)
    assert found
    assert (found.state, found.epoch, found.cancel_requested_at) == (PlacementState.CONFIRMED, 2, None)


async def test_a_change_that_was_decided_before_the_take_over_is_not_written(
    world: Rivalry, documents: SqliteDocuments
) -> None:
    """Frozen between its decision and its write, a leader finds another revision when it goes on."""
    gate, reached = asyncio.Event(), asyncio.Event()

    class Held(Store):
        async def cas(self, writes: Sequence[Write]) -> list[GurneyError | None]:
            if any(each.collection is PLACEMENTS and each.expected for each in writes):
                reached.set()
                await gate.wait()
            return await super().cas(writes)

    zombie = await world.leader(documents=Held(documents))
    await world.join()
    await world.request()
    old = await world.next(world.starts)
    assert zombie.reconcile
    late = asyncio.create_task(zombie.reconcile._runs.confirm(Confirm(run_id=old.run_id, node="n1", epoch=1)))
    await reached.wait()
    leader = await world.successor()
    assert (await world.next(world.starts)).epoch == 2
    gate.set()
    with pytest.raises(Deposed):
        await late
    found = await world.documents.get(PLACEMENTS, old.run_id)
    assert found
    assert (found.state, found.epoch) == (PlacementState.PLACED, 2)
    assert leader.tenure.leads


async def test_a_placement_that_a_former_leader_writes_late_is_taken_over(world: Rivalry) -> None:
    """Frozen while it wrote, it is none when it goes on; the job starts once, at the epoch that counts."""
    zombie, leader = await zombie_and_leader(world)
    await zombie.desk.want(a_request())
    stale = await world.next(world.starts)
    zombie.tenure.hold_until(clock.monotonic())
    assert stale.epoch == 1
    assert not await world.granted(stale)
    assert leader.reconcile
    assert stale.run_id not in leader.reconcile._cluster.placements
    await leader.reconcile._stragglers()
    anew = await world.next(world.starts)
    assert (anew.run_id, anew.epoch) == (stale.run_id, 2)
    assert stale.run_id in leader.reconcile._cluster.placements
    assert await world.granted(anew)


async def test_a_job_that_both_place_has_one_placement(world: Rivalry) -> None:
    """Whoever writes second finds the first; what the former leader wrote is taken over when it is found."""
    zombie, leader = await zombie_and_leader(world)
    first, second = a_request(cpu=0.1), a_request(cpu=0.1)
    await zombie.desk.want(first)
    stale = await world.next(world.starts)
    await leader.desk.want(first)
    anew = await world.next(world.starts)
    assert (stale.epoch, anew.run_id, anew.epoch) == (1, stale.run_id, 2)
    await leader.desk.want(second)
    placed = await world.next(world.starts)
    await zombie.desk.want(second)
    await world.until(lambda: gave_up(zombie))
    assert (placed.epoch, world.starts.empty()) == (2, True)
    assert await world.granted(placed)


async def gave_up(rival: Rival) -> bool:
    return not rival.tenure.leads


async def test_three_schedulers_and_many_jobs(world: Rivalry) -> None:
    """While leaders end one after the other, every job runs once, and no epoch goes back."""
    await world.leader()
    await world.join(capacity=Amount(cpu=8, memory=64 << 30))
    requests = [a_request(cpu=0.1) for _ in range(30)]
    confirmed: dict[str, int] = {}
    rivals = list(world._rivals.values())
    for number, request in enumerate(requests):
        await world.request(request)
        if number % 10 == 9:
            rivals.append(await world.rival())
            await rivals[-2].stop()
            await world.leads(rivals[-1], number // 10 + 2)
    while len(confirmed) < len(requests):
        start = await world.next(world.starts)
        if start.run_id not in confirmed and await world.granted(start):
            confirmed[start.run_id] = start.epoch
            await world.end(start)
        leader = rivals[-1].reconcile
        if leader and world.starts.empty():
            await leader()
    assert sorted(confirmed) == sorted(ids.run_id(request.job_id, 1) for request in requests)
