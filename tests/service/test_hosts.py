"""Real agents on several hosts: cut off, ended, replaced; what runs there ends in time, and never twice."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from gurney import clock, ids
from gurney.documents.sqlite import SqliteDocuments
from gurney.errors import AlreadyRunning, Conflict, GurneyError
from gurney.heartbeats import Heartbeats, Taken
from gurney.model.base import Reason
from gurney.model.event import event_of
from gurney.model.job import PlacementRequest
from gurney.model.resources import Amount
from gurney.model.run import Heartbeat, NodeState, Outcome, PlacementState
from gurney.settings import Settings
from gurney.subjects import HEARTBEAT
from gurney.testing.nats import NatsServer
from services.agent.claim import NodeTaken
from tests.service.hosts import Host, Hosts, processes

pytestmark = [pytest.mark.needs("nats"), pytest.mark.timeout(60)]

LEASE_S = 2.5
MARGIN_S = 0.5


def settings_of(server: NatsServer, folder: Path) -> Settings:
    return Settings(
        nats_url=server.url,
        data=folder,
        run_secret=SecretStr("a secret of runs"),
        heartbeat_interval=0.2,
        node_lost_after=1.5,
        run_lease=LEASE_S,
        request_timeout=1.0,
        transfer_patience=0.5,
    )


@pytest.fixture
def margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.scheduler.presence.MARGIN_S", MARGIN_S)


@pytest.fixture
async def world(nats_server: NatsServer, tmp_path: Path, margin: None) -> AsyncIterator[Hosts]:
    del margin
    documents = SqliteDocuments(tmp_path / "documents.db", sync="normal")
    async with Hosts(settings_of(nats_server, tmp_path), documents) as world:
        yield world
    await documents.close()


def gate(world: Hosts) -> str:
    """Return the name of a pipe that a script reads, and that is never written to but by the test."""
    pipe = world.settings.data / "gate"
    if not pipe.exists():
        os.mkfifo(pipe)
    return str(pipe)


def opens(world: Hosts) -> None:
    descriptor = os.open(gate(world), os.O_RDWR)
    world.at_the_end(os.close, descriptor)
    os.write(descriptor, b"\n")


def waits(world: Hosts) -> str:
    return f"trap '' TERM; echo x > \"$OUT/made\"; read _ < {gate(world)}; exit 3"


async def lost_and_placed_again(world: Hosts, request: PlacementRequest, first: Host) -> Host:
    """Wait until the first attempt is lost, with nothing of it left, and the second runs on another host."""
    lost = await world.told("lost", request)
    assert await processes(ids.run_id(request.job_id, 1)) == []
    assert lost.outcome is not None
    assert lost.outcome.reason is not None
    assert lost.outcome.reason.code == "node_lost"
    await world.run("", attempt=2, after=request)
    second = await world.runs(request, 2)
    assert second is not first
    return second


async def test_jobs_go_to_every_host(world: Hosts) -> None:
    """Two jobs that fill a host each run side by side on two."""
    for name in ("n1", "n2"):
        await world.joined(name)
    requests = [await world.run(waits(world)) for _ in range(2)]
    assert {(await world.told("started")).node for _ in requests} == {"n1", "n2"}
    opens(world)
    assert (await world.told("failed")).outcome.exit_code == 3  # type: ignore[union-attr]


async def test_a_host_that_is_cut_off_for_longer_than_its_lease(world: Hosts) -> None:
    """Its run is killed there before the next attempt begins elsewhere; what it tells afterwards changes nothing."""
    for name in ("n1", "n2"):
        await world.joined(name)
    request = await world.run(waits(world))
    first = await world.runs(request)
    first.cable.cut()
    second = await lost_and_placed_again(world, request, first)
    assert (await world.node(first.name)).state is NodeState.LOST
    first.cable.mend()

    async def is_back() -> bool:
        return (await world.node(first.name)).state is NodeState.READY and first.journal() == []

    await world.until(is_back)
    old = await world.placement(ids.run_id(request.job_id, 1))
    assert old.outcome is not None
    assert old.outcome.exit_code is None  # as the scheduler had it, not as the agent told it later
    opens(world)
    failed = await world.told("failed", request, 2)
    assert (failed.node, failed.outcome and failed.outcome.exit_code) == (second.name, 3)
    assert world.counted() == [ids.run_id(request.job_id, attempt) for attempt in (1, 2)]


async def test_a_host_that_is_cut_off_for_less_than_its_lease(world: Hosts) -> None:
    """Its run goes on, and is the only one."""
    host = await world.joined("n1", run_lease=60.0)
    request = await world.run(waits(world))
    await world.runs(request)
    host.cable.cut()
    assert (await world.next(world.nodes)).state is NodeState.LOST
    host.cable.mend()
    assert (await world.next(world.nodes)).state is NodeState.READY
    opens(world)
    failed = await world.told("failed", request)
    assert (failed.outcome and failed.outcome.exit_code, len(world.counted())) == (3, 1)


async def test_a_host_that_comes_back_with_a_run_that_is_over(world: Hosts) -> None:
    """It was frozen, its clocks with it: the run is ended there, and of the attempt that followed nothing changes."""
    for name in ("n1", "n2"):
        await world.joined(name, run_lease=60.0, stop_grace=0.2)
    request = await world.run(waits(world))
    first = await world.runs(request)
    run_id = ids.run_id(request.job_id, 1)
    first.cable.cut()
    assert (await world.next(world.nodes)).state is NodeState.LOST
    reason = Reason.of("node_lost", "its lease has lapsed, as far as the scheduler can tell")
    await world.reconciler._runs.end(run_id, first.name, Outcome(ending="lost", reason=reason))
    await world.told("lost", request)
    assert await processes(run_id)
    await world.run(waits(world), attempt=2, after=request)
    second = await world.runs(request, 2)
    assert second is not first
    first.cable.mend()

    async def is_clear() -> bool:
        return first.journal() == [] and await processes(run_id) == []

    await world.until(is_clear)
    assert await processes(ids.run_id(request.job_id, 2))
    old = await world.placement(run_id)
    assert (old.state, old.outcome and old.outcome.reason) == (PlacementState.ENDED, reason)
    opens(world)
    failed = await world.told("failed", request, 2)
    assert (failed.node, failed.outcome and failed.outcome.exit_code) == (second.name, 3)
    assert world.counted() == [ids.run_id(request.job_id, attempt) for attempt in (1, 2)]


async def test_an_agent_that_ended_does_not_keep_its_runs_alive(world: Hosts) -> None:
    """Who watches over them does not need it; another host takes the job, and the agent learns it when it is back."""
    for name in ("n1", "n2"):
        await world.joined(name)
    request = await world.run(waits(world))
    first = await world.runs(request)
    await first.ends()
    await lost_and_placed_again(world, request, first)
    await first.starts()

    async def is_clear() -> bool:
        return first.journal() == []

    await world.until(is_clear)
    assert (await world.placement(ids.run_id(request.job_id, 1))).state is PlacementState.ENDED
    assert len(world.counted()) == 2


async def test_an_agent_that_restarts_in_time_keeps_its_runs(world: Hosts) -> None:
    """A restart costs no attempt: the run is found again, and its lease renewed."""
    host = await world.joined("n1")
    request = await world.run(waits(world))
    await world.runs(request)
    await host.ends()
    await host.starts()
    await asyncio.sleep(1.5 * LEASE_S)  # only time shows that a lease was renewed
    opens(world)
    failed = await world.told("failed", request)
    assert (failed.outcome and failed.outcome.exit_code, len(world.counted())) == (3, 1)


async def test_a_start_that_waited_for_longer_than_its_lease_is_given_up(
    world: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was confirmed and could not begin in time does not begin: it runs elsewhere by then, or will."""
    gone = asyncio.Event()

    async def bring_input(*_: object, **__: object) -> None:
        await gone.wait()

    monkeypatch.setattr("services.agent.preparing.Preparation.bring_input", bring_input)
    host = await world.joined("n1")
    request = await world.run(waits(world))
    run_id = ids.run_id(request.job_id, 1)
    await world.becomes(run_id, PlacementState.CONFIRMED)
    host.cable.cut()
    await world.told("lost", request)
    gone.set()
    host.cable.mend()

    async def is_clear() -> bool:
        return host.journal() == []

    await world.until(is_clear)
    assert world.counted() == []


async def test_all_of_jetstream_is_wiped(own_nats_server: NatsServer, tmp_path: Path, margin: None) -> None:
    """Runs go on under their leases, no node is lost, and every job runs once."""
    del margin
    documents = SqliteDocuments(tmp_path / "documents.db", sync="normal")
    settings = settings_of(own_nats_server, tmp_path).model_copy(update={"run_lease": 30.0})
    async with Hosts(settings, documents) as world:
        await world.joined("n1")
        request = await world.run(waits(world))
        await world.runs(request)
        own_nats_server.kill()
        own_nats_server.wipe()
        own_nats_server.start()

        async def beats() -> bool:
            return await world.scheduler.bus.answers(0.2) and bool(await world.scheduler.bus.latest("KV_heartbeats"))

        await world.until(lambda: quietly(beats))
        opens(world)
        await world.becomes(ids.run_id(request.job_id, 1), PlacementState.ENDED)
        outcome = (await world.placement(ids.run_id(request.job_id, 1))).outcome
        assert outcome is not None
        assert (outcome.ending, outcome.exit_code) == ("failed", 3)
        assert len(world.counted()) == 1
    await documents.close()


async def quietly(holds: Callable[[], Awaitable[bool]]) -> bool:
    try:
        return await holds()
    except GurneyError:
        return False


# --- names ---


async def test_two_agents_cannot_be_one_node(world: Hosts) -> None:
    """The second says so in one line and does not start; the first goes on."""
    await world.joined("n1")
    twin = await world.host("n1", disk="twin")
    with pytest.raises(NodeTaken, match="give one of the two another GURNEY_NODE"):
        await twin.starts()
    same = await world.host("n1")
    with pytest.raises(AlreadyRunning, match="an agent runs on"):
        await same.starts()
    request = await world.run("exit 4")
    assert (await world.told("failed", request)).node == "n1"


async def test_a_new_host_gets_the_name_of_one_that_is_gone(world: Hosts) -> None:
    """It waits until the former one has not been heard of, and then joins as the node."""
    former = await world.joined("n1")
    await former.ends()
    replaced = await world.host("n1", disk="new")
    await replaced.starts()
    assert (await world.next(world.nodes)).state is NodeState.LOST
    assert (await world.next(world.nodes)).state is NodeState.READY
    request = await world.run("exit 4")
    assert (await world.told("failed", request)).node == "n1"


async def test_an_agent_whose_name_was_taken_takes_nothing_more(world: Hosts) -> None:
    """When another agent got hold of its key it refuses starts, and goes on when that one is gone."""
    host = await world.joined("n1", heartbeat_interval=0.05)
    bucket = Heartbeats(world.bus)
    beat = Heartbeat(node="n1", incarnation="twin", home="twin", at=clock.now(), capacity=Amount(), kinds=())
    event = event_of(HEARTBEAT.of(node_id="n1"), beat, id=ids.new_id("evt"), source="test", at=clock.now())

    async def stolen() -> bool:
        kept = await bucket.read("n1")
        with contextlib.suppress(Taken):
            await bucket.put(event, kept.sequence if kept else 0)
            return True
        return False

    await world.until(stolen)
    await world.until(lambda: refused(host))
    request = await world.run("exit 4")
    start = await world.next(world.starts)
    with pytest.raises(Conflict, match="another agent"):
        await host.supervisor.start(start)
    assert (await world.told("failed", request)).node == "n1"  # its key has lapsed, and the start came again


async def refused(host: Host) -> bool:
    return host.supervisor.is_refused


# --- folder MAPs ---


async def test_a_host_with_another_folder_refuses_the_map(world: Hosts) -> None:
    """A host copies the folder on first use; one that has another under the name is no place for the job."""
    await world.joined("n1", maps="other", transfer_patience=600.0)
    request = await world.run("exit 4")
    lost = await world.told("lost", request)
    assert lost.outcome is not None
    assert lost.outcome.reason is not None
    assert lost.outcome.reason.code == "image_unavailable"
    assert "has changed" in lost.outcome.reason.message
    await world.joined("n2")
    await world.run("", attempt=2, after=request.but(avoid=("n1",)))
    assert (await world.told("failed", request, 2)).node == "n2"
