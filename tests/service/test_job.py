"""The job service over a real nats-server and real documents; the other services are fakes on the same bus."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self

import pytest

from gurney import clock, ids
from gurney.bus import Bus
from gurney.documents.sqlite import SqliteDocuments
from gurney.errors import (
    GurneyError,
    IdempotencyKeyReused,
    Invalid,
    JobLive,
    JobTerminal,
    NoRoom,
    NotFound,
    StoreUnavailable,
    Unavailable,
)
from gurney.model.access import Caller
from gurney.model.base import Idempotency, Message
from gurney.model.common import Digests, Empty, Page
from gurney.model.event import event_of
from gurney.model.job import (
    Admission,
    CancelJob,
    CreateJob,
    Job,
    JobCreate,
    JobEvent,
    JobGet,
    JobList,
    JobOwed,
    JobRefs,
    JobState,
    MapJobs,
)
from gurney.model.map import StaticContent
from gurney.model.payload import Ended, Payload, PayloadState
from gurney.model.resources import AskedResources
from gurney.model.run import Admitted, Lifecycle, PlacementEvents
from gurney.service import Parts, Service
from gurney.settings import Settings
from gurney.subjects import (
    HANDLER_EXIST,
    JOB_ALIVE,
    JOB_AWAIT,
    JOB_CANCEL,
    JOB_CREATE,
    JOB_DELETE,
    JOB_FINALIZE,
    JOB_GET,
    JOB_LIST,
    JOB_LIVE,
    JOB_NEEDED,
    JOB_NOTIFIED,
    JOB_OWED,
    LIFECYCLE,
    MAP_GET,
    PAYLOAD_CLAIM,
    PAYLOAD_DROP,
    PAYLOAD_END,
    PAYLOAD_FINALIZE,
    PAYLOAD_GET,
    PAYLOAD_RELEASE,
    PAYLOAD_RESTORE,
    SCHEDULER_ADMIT,
    SCHEDULER_PLACEMENTS,
    SCHEDULER_RELEASE,
    Operation,
)
from gurney.testing.nats import NatsServer
from services.job import create, handlers, reconcile
from services.job.__main__ import build
from services.job.effects import Effects
from services.job.events import CancelRequested, Event, Scheduled, Started, Succeeded
from services.job.repository import JOBS
from tests.job_builders import CALLER, MAP_ID, OTHER, PAYLOAD_ID, T0, a_job, a_map, a_request, after, an_outcome

RESULTS_ID = "pay_01k00000000000000000000001"
Asked = Operation[Any, Any]


@dataclass
class Others:
    """What the fakes of the other services were asked, and what they answer."""

    asked: list[tuple[str, Any]] = field(default_factory=list)
    #: Operation -> errors to raise, one for each question, before the usual answer.
    faults: dict[str, list[GurneyError]] = field(default_factory=dict)
    placements: tuple[Lifecycle, ...] = ()

    def answer(self, operation: Asked, reply: Callable[[Any], Message]) -> Callable[[Any], Awaitable[Message]]:
        async def handle(question: Any) -> Message:
            self.asked.append((f"{operation.service}.{operation.name}", question))
            if faults := self.faults.get(operation.name):
                raise faults.pop(0)
            return reply(question)

        return handle

    def questions(self, name: str) -> list[Any]:
        return [question for each, question in self.asked if each == name]

    def services(self, settings: Settings) -> list[Service]:
        payload = Payload(id=PAYLOAD_ID, created_at=T0, updated_at=T0, state=PayloadState.OPEN)
        replies: dict[Asked, Callable[[Any], Message]] = {
            MAP_GET: lambda _: a_map(),
            PAYLOAD_GET: lambda _: payload,
            PAYLOAD_CLAIM: lambda _: payload,
            PAYLOAD_RELEASE: lambda _: Empty(),
            PAYLOAD_RESTORE: lambda _: Empty(),
            PAYLOAD_FINALIZE: lambda _: Empty(),
            PAYLOAD_DROP: lambda _: Empty(),
            PAYLOAD_END: lambda q: Ended(results=RESULTS_ID, files=3, bytes=30) if q.run else Ended(results=None),
            HANDLER_EXIST: lambda _: Empty(),
            SCHEDULER_ADMIT: lambda q: Admitted(reserved=q.admission is Admission.REJECT and not q.dry_run),
            SCHEDULER_RELEASE: lambda _: Empty(),
            SCHEDULER_PLACEMENTS: self._placements,
        }
        names = sorted({operation.service for operation in replies})
        return [
            Service(name, settings).does(
                Parts(
                    answers={each: self.answer(each, reply) for each, reply in replies.items() if each.service == name}
                )
            )
            for name in names
        ]

    def _placements(self, question: Any) -> PlacementEvents:
        items = [each for each in self.placements if ids.run_id(each.job_id, each.attempt) in question.runs]
        return PlacementEvents(items=tuple(items))


class World:
    """The job service, those around it, a client's bus, and all events of jobs as they come."""

    def __init__(self, settings: Settings, documents: SqliteDocuments) -> None:
        self.settings = settings
        self.documents = documents
        self.others = Others()
        self.client = Service("edge", settings)
        self.events: asyncio.Queue[JobEvent] = asyncio.Queue()
        self.cancels: asyncio.Queue[CancelJob] = asyncio.Queue()
        self.dead: asyncio.Queue[bytes] = asyncio.Queue()
        self._heard: set[str | None] = set()
        self._stack = AsyncExitStack()
        self.job = build(settings, documents=documents)

    @property
    def bus(self) -> Bus:
        return self.client.bus

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.client)
        await self.bus.subscribe("job.*.*", self._hear(self.events, JobEvent.decode))
        await self.bus.subscribe("cancel.*", self._hear(self.cancels, CancelJob.decode))
        await self.bus.subscribe("dead.*.*", self._hear(self.dead, bytes))
        for service in self.others.services(self.settings):
            await self._stack.enter_async_context(service)
        await self._stack.enter_async_context(self.job)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    def _hear(self, queue: asyncio.Queue[Any], decode: Callable[[bytes], Any]) -> Callable[[Any], Awaitable[None]]:
        """Hear each message once: the outbox may send one twice, which JetStream drops by its id."""

        async def call(message: Any) -> None:
            message_id = (message.headers or {}).get("Nats-Msg-Id")
            if message_id is None or message_id not in self._heard:
                self._heard.add(message_id)
                queue.put_nowait(decode(message.data))

        return call

    async def create(self, *, caller: Caller = CALLER, key: Idempotency | None = None, **changes: Any) -> Job:
        dry_run, transient = changes.pop("dry_run", False), changes.pop("transient", False)
        body = CreateJob(**({"map": "sample", "payload": PAYLOAD_ID} | changes))
        question = JobCreate(caller=caller, body=body, idempotency=key, dry_run=dry_run, transient=transient)
        return await self.bus.request(JOB_CREATE, question)

    async def get(self, job_id: str, caller: Caller | None = None) -> Job:
        return await self.bus.request(JOB_GET, JobGet(caller=caller, job=job_id))

    async def send(self, event: Any, job: Job, attempt: int = 1, revision: int = 1, **more: Any) -> None:
        """Have the scheduler tell an event of a placement."""
        message = Lifecycle(
            event=event,
            event_id=ids.new_id("evt"),
            job_id=job.id,
            attempt=attempt,
            revision=revision,
            at=clock.now(),
            **more,
        )
        subject = LIFECYCLE.of(event=event, job_id=job.id)
        out = event_of(subject, message, id=message.event_id, source="scheduler", at=message.at)
        await self.bus.publish_events([out])

    async def hear(self, *names: str) -> list[JobEvent]:
        """Return the next events of jobs, which must have these names."""
        heard = [await asyncio.wait_for(self.events.get(), 30) for _ in names]
        assert [each.event for each in heard] == list(names)
        return heard

    async def ended(self, event: Literal["succeeded", "failed", "canceled"] = "succeeded", **changes: Any) -> Job:
        """Return a job that has ended."""
        job = await self.create(**changes)
        await self.send(event, job, outcome=an_outcome(event))
        await self.hear("requested", event)
        return await self.get(job.id)

    async def reconcile(self) -> None:
        """Have one round done."""
        round_ = self.job._parts.reconcile
        assert round_
        await round_()

    async def settled(self) -> None:
        """Return when no job owes anything, of which no event tells."""
        async with asyncio.timeout(30):
            while any(each.owes for each in await self.stored()):
                await asyncio.sleep(0.01)

    async def stored(self) -> list[Job]:
        return await self.job.store.find(JOBS)


@pytest.fixture
async def documents(tmp_path: Path) -> AsyncIterator[SqliteDocuments]:
    documents = SqliteDocuments(tmp_path / "documents.db", sync="normal")
    yield documents
    await documents.close()


@pytest.fixture
def settings(nats_server: NatsServer, tmp_path: Path) -> Settings:
    return Settings(nats_url=nats_server.url, data=tmp_path)


@pytest.fixture
async def world(settings: Settings, documents: SqliteDocuments) -> AsyncIterator[World]:
    async with World(settings, documents) as world:
        yield world


def key(digest: str = "d") -> Idempotency:
    return Idempotency(key="tok:/v1/jobs:k", digest=digest)


# --- create ---


async def test_a_job_is_claimed_admitted_stored_and_told(world: World) -> None:
    """A new job has a claim and the scheduler's word, and `job.requested` carries what the scheduler needs."""
    job = await world.create(name="CT", labels={"a": "b"}, priority="higher")
    (told,) = await world.hear("requested")
    assert told.event_id == ids.job_event_id(job.id, 1, "requested")
    assert told.placement
    assert (told.placement.job_id, told.placement.request, told.placement.requested_at) == (
        job.id,
        job.request,
        job.created_at,
    )
    assert await world.get(job.id) == job
    (claim,) = world.others.questions("payload.claim")
    (admit,) = world.others.questions("scheduler.admit")
    assert (claim.job, admit.job_id, admit.request, admit.dry_run) == (job.id, job.id, job.request, False)
    assert (job.name, job.labels, job.state, job.map.id, job.payload) == (
        "CT",
        {"a": "b"},
        JobState.REQUESTED,
        MAP_ID,
        PAYLOAD_ID,
    )
    assert not world.others.questions("notifier.exist")


async def test_given_handlers_must_exist(world: World) -> None:
    """Handlers that are given are asked for, and a job with one that is not there is refused without a trace."""
    world.others.faults["exist"] = [Invalid.field("handlers", "there is no hdl_x")]
    with pytest.raises(Invalid, match="hdl_x"):
        await world.create(handlers=("hdl_x",))
    (released,) = world.others.questions("payload.release")
    assert (released.payload, await world.stored()) == (PAYLOAD_ID, [])
    assert (await world.create(handlers=("hdl_y",))).handlers == ("hdl_y",)


async def test_a_dry_run_leaves_nothing(world: World) -> None:
    """A dry run resolves and admits everything, stores and claims nothing, and its document has no id."""
    job = await world.create(dry_run=True)
    assert (job.id, job.map.id, job.request.command) == ("", MAP_ID, ("python", "app.py"))
    assert [question.dry_run for question in world.others.questions("scheduler.admit")] == [True]
    assert not world.others.questions("payload.claim")
    assert await world.stored() == []
    assert world.events.empty()


async def test_bad_input_asks_nobody(world: World) -> None:
    """A body at fault is refused by its field before anybody is asked."""
    world.others.asked.clear()
    with pytest.raises(Invalid) as caught:
        await world.create(resources=AskedResources(cpu=-1))
    assert [fault.field for fault in caught.value.errors] == ["resources.cpu"]
    assert not world.others.questions("payload.claim")


@pytest.mark.parametrize(
    ("operation", "fault", "released"),
    [
        ("get", NotFound("there is no MAP"), True),
        ("claim", NotFound("there is no payload"), False),
        ("claim", StoreUnavailable("a store is away"), True),
        ("admit", NoRoom("short of cpu"), True),
    ],
)
async def test_a_refused_create_leaves_nothing(
    world: World,
    operation: str,
    fault: GurneyError,
    released: bool,  # noqa: FBT001  # a column of the table above
) -> None:
    """Whoever refuses, there is no job, and a claim that may be there is given back before the answer."""
    world.others.faults[operation] = [fault]
    with pytest.raises(type(fault)):
        await world.create(admission="reject")
    assert bool(world.others.questions("payload.release")) is released
    assert bool(world.others.questions("scheduler.release")) is (operation == "admit")
    assert await world.stored() == []


async def test_a_create_that_took_too_long_is_undone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that cannot be stored soon after its admission is given up with its reservation and its claim."""
    monkeypatch.setattr(create, "STORE_WITHIN_S", -1.0)
    with pytest.raises(Unavailable):
        await world.create(admission="reject")
    (claim,), (released,) = world.others.questions("payload.claim"), world.others.questions("payload.release")
    (room,) = world.others.questions("scheduler.release")
    assert released.job == claim.job == room.job_id
    assert await world.stored() == []


async def test_a_repeated_request_gets_the_first_job(world: World) -> None:
    """The same key and body answer with the job as it is now and claim nothing; another body is refused."""
    first = await world.create(key=key())
    await world.send("scheduled", first, node="n1")
    await world.hear("requested", "scheduled")
    again = await world.create(key=key())
    assert (again.id, again.state) == (first.id, JobState.SCHEDULED)
    assert len(world.others.questions("payload.claim")) == 1
    with pytest.raises(IdempotencyKeyReused):
        await world.create(key=key("other"))


async def test_of_two_requests_at_once_one_wins(world: World) -> None:
    """Requests that race under one key make one job, and each loser gives its own claim back."""
    jobs = await asyncio.gather(*[world.create(key=key()) for _ in range(8)])
    assert len({job.id for job in jobs}) == 1
    claimed = {question.job for question in world.others.questions("payload.claim")}
    released = {question.job for question in world.others.questions("payload.release")}
    assert claimed - released == {jobs[0].id}
    assert [job.id for job in await world.stored()] == [jobs[0].id]


# --- lifecycle ---


async def test_a_job_runs_to_its_end(world: World) -> None:
    """The scheduler's events become the job's, and results and counts are there when the end is told."""
    job = await world.create()
    await world.send("scheduled", job, revision=1, node="n1")
    await world.send("started", job, revision=2, node="n1")
    await world.send("succeeded", job, revision=3, node="n1", outcome=an_outcome(metadata={"k": 1}))
    *_, told = await world.hear("requested", "scheduled", "started", "succeeded")
    (end,) = world.others.questions("payload.end")
    assert (end.job, end.payload, end.run, end.partial) == (job.id, PAYLOAD_ID, f"{job.id}-1", False)
    assert (told.results, told.counts.files, told.counts.bytes, told.node) == (RESULTS_ID, 3, 30, "n1")
    done = await world.get(job.id)
    assert (done.results, done.state, done.metadata, done.folded.revision) == (
        RESULTS_ID,
        JobState.SUCCEEDED,
        {"k": 1},
        3,
    )
    assert [item.event for item in done.story] == ["requested", "scheduled", "started", "succeeded"]
    assert all(item.cause for item in done.story)


async def test_an_end_waits_for_the_payload_service(world: World) -> None:
    """A terminal state is not written before the payload service knows of it: the message comes again until then."""
    world.others.faults["end"] = [StoreUnavailable("away"), StoreUnavailable("away")]
    job = await world.ended()
    assert (job.state, job.results) == (JobState.SUCCEEDED, RESULTS_ID)
    assert len(world.others.questions("payload.end")) == 3


async def test_a_lost_attempt_is_requested_again(world: World) -> None:
    """A lost attempt asks the scheduler for the next one, elsewhere, and binds nothing."""
    job = await world.create()
    await world.send("scheduled", job, node="n1")
    await world.send("lost", job, revision=2, node="n1")
    *_, requested = await world.hear("requested", "scheduled", "retrying", "requested")
    assert requested.placement
    assert (requested.attempt, requested.placement.attempt, requested.placement.avoid) == (2, 2, ("n1",))
    assert not world.others.questions("payload.end")
    await world.send("succeeded", job, attempt=2, outcome=an_outcome())
    await world.hear("succeeded")
    assert [each.run for each in world.others.questions("payload.end")] == [f"{job.id}-2"]


async def test_a_repeated_message_changes_nothing(world: World) -> None:
    """An end that is told twice is one end."""
    job = await world.ended()
    await world.send("failed", job, outcome=an_outcome("failed", "exit_nonzero"))
    other = await world.create()
    await world.hear("requested")
    await world.send("scheduled", other)
    await world.hear("scheduled")
    assert await world.get(job.id) == job


async def test_a_message_of_no_job_is_dropped_and_a_broken_one_buried(world: World) -> None:
    """A message of a deleted job is acknowledged; one that says nothing, or the impossible, is a dead letter."""
    ghost = a_job(id=ids.new_id("job"))
    await world.send("succeeded", ghost, outcome=an_outcome())
    job = await world.create()
    await world.send("scheduled", job, attempt=2)
    await asyncio.wait_for(world.dead.get(), 30)
    await world.bus.js.publish(LIFECYCLE.of(event="scheduled", job_id=ghost.id), b"{}")
    assert await asyncio.wait_for(world.dead.get(), 30) == b"{}"
    assert world.dead.empty()
    assert (await world.get(job.id)).state is JobState.REQUESTED


# --- cancel, finalize, delete ---


async def test_a_cancel_reaches_the_scheduler_once(world: World) -> None:
    """Cancel stamps a live job and tells the scheduler; asked again it answers the same."""
    job = await world.create()
    question = JobGet(caller=CALLER, job=job.id)
    first, second = [await world.bus.request(JOB_CANCEL, question) for _ in range(2)]
    assert first.cancel_requested_at
    assert first == second
    told = await asyncio.wait_for(world.cancels.get(), 30)
    assert (told.job_id, told.attempt, world.cancels.empty()) == (job.id, 1, True)
    await world.send("canceled", job)
    await world.hear("requested", "canceled")
    canceled = await world.bus.request(JOB_CANCEL, question)
    assert canceled.state is JobState.CANCELED
    assert [each.run for each in world.others.questions("payload.end")] == [None]


async def test_what_has_ended_is_not_canceled(world: World) -> None:
    """A job that ended otherwise answers `job_terminal`."""
    job = await world.ended()
    with pytest.raises(JobTerminal):
        await world.bus.request(JOB_CANCEL, JobGet(caller=CALLER, job=job.id))


async def test_finalize_drops_the_input_claim(world: World) -> None:
    """Finalize stamps the job once, tells the payload service and owes it nothing then."""
    job = await world.ended()
    question = JobGet(caller=CALLER, job=job.id)
    first, second = [await world.bus.request(JOB_FINALIZE, question) for _ in range(2)]
    assert first.finalized_at
    assert (second.finalized_at, first.owes, second.owes) == (first.finalized_at, None, None)
    await world.hear("finalized")
    (asked,) = world.others.questions("payload.finalize")
    assert (asked.job, asked.payload) == (job.id, PAYLOAD_ID)


@pytest.mark.parametrize("operation", [JOB_FINALIZE, JOB_DELETE])
async def test_a_live_job_stays(world: World, operation: Asked) -> None:
    """Finalize and delete of a live job are refused."""
    job = await world.create()
    with pytest.raises(JobLive):
        await world.bus.request(operation, JobGet(caller=CALLER, job=job.id))


async def test_delete_takes_everything(world: World) -> None:
    """A deleted job's claims go, `deleted` is told, and the job is not there for anybody."""
    job = await world.ended()
    await world.bus.request(JOB_DELETE, JobGet(caller=CALLER, job=job.id))
    await world.hear("deleted")
    assert [each.job for each in world.others.questions("payload.drop")] == [job.id]
    assert await world.stored() == []
    with pytest.raises(NotFound):
        await world.bus.request(JOB_DELETE, JobGet(caller=CALLER, job=job.id))


@pytest.mark.parametrize(("operation", "fault"), [(JOB_FINALIZE, "finalize"), (JOB_DELETE, "drop")])
async def test_what_the_payload_service_missed_is_made_up(world: World, operation: Asked, fault: str) -> None:
    """Finalize and delete succeed once the document says so; the reconciler tells the payload service later."""
    job = await world.ended()
    world.others.faults[fault] = [StoreUnavailable("away")]
    await world.bus.request(operation, JobGet(caller=CALLER, job=job.id))
    await world.hear("finalized" if operation is JOB_FINALIZE else "deleted")
    await world.settled()
    assert len(world.others.questions(f"payload.{fault}")) == 2


async def test_a_deletion_forgets_no_finalize(world: World) -> None:
    """Whoever finalizes and deletes a job while the payload service is away still has its input let go."""
    job = await world.ended()
    asked = JobGet(caller=CALLER, job=job.id)
    world.others.faults["finalize"] = [StoreUnavailable("away"), StoreUnavailable("away")]
    await world.bus.request(JOB_FINALIZE, asked)
    await world.bus.request(JOB_DELETE, asked)
    async with asyncio.timeout(30):
        while await world.stored():
            await asyncio.sleep(0.01)
    assert len(world.others.questions("payload.finalize")) == 3
    assert [each.job for each in world.others.questions("payload.drop")] == [job.id]


# --- jobs whose ends somebody waits for ---


async def test_a_transient_job_is_awaited(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody says that he waits it goes on; when nobody does it is canceled, and its data go with its end."""
    monkeypatch.setattr(reconcile, "SUSPECTED_S", 0)
    monkeypatch.setattr(handlers, "AWAITED", timedelta(0))
    job = await world.create(transient=True)
    assert job.transient
    await world.reconcile()
    assert (await world.get(job.id)).cancel_requested_at is None
    lapsed = await world.bus.request(JOB_AWAIT, JobGet(caller=CALLER, job=job.id))
    assert lapsed.awaited_until
    await world.reconcile()
    assert (await world.get(job.id)).cancel_requested_at
    await world.send("canceled", job, outcome=an_outcome("canceled"))
    await world.hear("requested", "canceled", "finalized")
    await world.settled()
    after_all = await world.bus.request(JOB_AWAIT, JobGet(caller=CALLER, job=job.id))
    assert (after_all.awaited_until, after_all.owes, after_all.results) == (None, None, None)
    assert [each.wait for each in world.others.questions("payload.drop")] == [True]
    assert len(world.others.questions("payload.finalize")) == 1


async def test_who_waits_may_be_late_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that was put forward, or NATS away, ends no job: it is suspected first."""
    monkeypatch.setattr(handlers, "AWAITED", timedelta(0))
    job = await world.create(transient=True)
    await world.bus.request(JOB_AWAIT, JobGet(caller=CALLER, job=job.id))
    for _ in range(3):
        await world.reconcile()
    assert (await world.get(job.id)).cancel_requested_at is None


async def test_the_results_of_a_transient_job_go_when_it_is_finalized(world: World) -> None:
    """They stay for who waits, for as long as he says so; then they go, with input and log, and the record tells it."""
    job = await world.create(transient=True)
    await world.send("succeeded", job, outcome=an_outcome(output=True))
    await world.hear("requested", "succeeded")
    assert (await world.get(job.id)).results == RESULTS_ID
    done = await world.bus.request(JOB_FINALIZE, JobGet(caller=CALLER, job=job.id))
    assert (done.results, done.owes, done.state) == (None, None, "succeeded")
    assert len(world.others.questions("payload.finalize")) == len(world.others.questions("payload.drop")) == 1


# --- what others see ---


async def test_a_job_exists_for_whom_it_may(world: World) -> None:
    """A clinician does not see another's job; its author and services do."""
    job = await world.create()
    assert (await world.get(job.id, CALLER)).id == job.id
    operations: tuple[Asked, ...] = (JOB_GET, JOB_CANCEL, JOB_FINALIZE, JOB_DELETE)
    for operation in operations:
        with pytest.raises(NotFound):
            await world.bus.request(operation, JobGet(caller=OTHER, job=job.id))
    assert (await world.bus.request(JOB_LIST, JobList(caller=OTHER))).items == ()


async def put(world: World, **changes: Any) -> Job:
    """Store a job as it is."""
    return await world.job.store.insert(JOBS, a_job(**({"id": ids.new_id("job")} | changes)))


async def test_filters_combine(world: World) -> None:
    """Every filter of a list narrows it, and together they do by AND."""
    wanted = await put(
        world,
        state=JobState.SUCCEEDED,
        created_at=after(10),
        stopped_at=after(20),
        labels={"a": "1", "b": "2"},
    )
    for changes in (
        {"state": JobState.FAILED},
        {"created_at": after(1)},
        {"created_at": after(19)},
        {"stopped_at": after(12)},
        {"stopped_at": after(30)},
        {"labels": {"a": "1"}},
        {"payload": RESULTS_ID},
        {"map": wanted.map.but(id="map_01k00000000000000000000009", name="other")},
        {"deleting": True},
    ):
        await world.job.store.insert(JOBS, wanted.but(id=ids.new_id("job"), **changes))
    question = JobList(
        caller=CALLER,
        map=MAP_ID,
        payload=PAYLOAD_ID,
        state=JobState.SUCCEEDED,
        labels=(("a", "1"), ("b", "2")),
        created_after=after(5),
        created_before=after(15),
        completed_after=after(15),
        completed_before=after(25),
    )
    for each in (question, question.but(map="sample"), question.but(payload="by name")):
        assert [job.id for job in (await world.bus.request(JOB_LIST, each)).items] == [wanted.id]
    world.others.faults["get"] = [NotFound("there is no payload")]
    assert (await world.bus.request(JOB_LIST, question.but(payload="gone"))).items == ()


async def test_a_list_comes_in_pages_newest_first(world: World) -> None:
    """Pages follow each other without gap or repetition until there is no cursor."""
    jobs = [await put(world, created_at=after(number // 2)) for number in range(7)]
    seen: list[Job] = []
    page: Page[Job] = Page(items=(), next_cursor=None)
    while not seen or page.next_cursor:
        page = await world.bus.request(JOB_LIST, JobList(caller=CALLER, limit=3, cursor=page.next_cursor))
        seen += page.items
    expected = sorted(jobs, key=lambda job: (job.created_at, job.id), reverse=True)
    assert [job.id for job in seen] == [job.id for job in expected]


async def test_live_jobs_of_a_map_are_counted(world: World) -> None:
    """A MAP's live jobs are counted, and the first ten are named; ended ones and other MAPs' do not count."""
    live = [await put(world, created_at=after(number)) for number in range(12)]
    ended = await put(world, state=JobState.FAILED)
    told = await world.bus.request(JOB_LIVE, MapJobs(map=MAP_ID))
    assert (told.count, told.jobs) == (12, tuple(job.id for job in live[:10]))
    assert (await world.bus.request(JOB_LIVE, MapJobs(map="map_x"))).count == 0
    alive = await world.bus.request(JOB_ALIVE, JobRefs(jobs=(live[0].id, ended.id, "job_x")))
    assert (alive.live, alive.ended) == ((live[0].id,), (ended.id,))


async def test_what_live_jobs_need_is_told_by_digest(world: World) -> None:
    """A live job needs its MAP and what that brings along, whatever became of the MAP; an ended one needs nothing."""
    content = StaticContent(payload=PAYLOAD_ID, path="/opt/models", digest="sha256:b")
    request = a_request()
    await put(world, request=request.but(digest="sha256:a", content=content))
    await put(world, state=JobState.RUNNING, request=request.but(digest="sha256:c"))
    await put(world, state=JobState.FAILED, request=request.but(digest="sha256:d", content=content))
    asked = Digests(digests=("sha256:d", "sha256:c", "sha256:b", "sha256:a", "sha256:e"))
    assert (await world.bus.request(JOB_NEEDED, asked)).digests == ("sha256:a", "sha256:b", "sha256:c")
    assert (await world.bus.request(JOB_NEEDED, Digests())).digests == ()


async def test_reconcilers_get_what_they_are_owed(world: World) -> None:
    """Jobs that wait, that are to be canceled and that nobody was told of come in pages, oldest first."""
    waiting = [await put(world, created_at=after(number)) for number in range(5)]
    canceling = await put(world, state=JobState.RUNNING, cancel_requested_at=after(1))
    ended = await put(world, state=JobState.SUCCEEDED, stopped_at=after(9), results=RESULTS_ID)
    await put(world, state=JobState.SUCCEEDED, notified=True)
    found, cursor = [], None
    while True:
        page = await world.bus.request(JOB_OWED, JobOwed(kind="requested", after=cursor, limit=2))
        found += [item.job_id for item in page.items]
        cursor = page.next
        if cursor is None:
            break
    assert found == [job.id for job in waiting]
    (item,) = (await world.bus.request(JOB_OWED, JobOwed(kind="canceling"))).items
    assert (item.job_id, item.cancel_requested_at) == (canceling.id, after(1))
    (told,) = (await world.bus.request(JOB_OWED, JobOwed(kind="unnotified"))).ended
    assert (told.event_id, told.event, told.at, told.results) == (
        ids.job_event_id(ended.id, 1, "succeeded"),
        "succeeded",
        after(9),
        RESULTS_ID,
    )
    for _ in range(2):
        await world.bus.request(JOB_NOTIFIED, JobRefs(jobs=(ended.id, "job_gone")))
    assert (await world.bus.request(JOB_OWED, JobOwed(kind="unnotified"))).ended == ()


# --- the reconciler ---


async def test_a_start_makes_up_what_was_left(settings: Settings, documents: SqliteDocuments) -> None:
    """At start live jobs get their claims and what their placements say, and begun deletions are finished."""
    live, done = a_job(id=ids.new_id("job")), a_job(id=ids.new_id("job"), state=JobState.SUCCEEDED)
    await documents.open([JOBS])
    left = Service("job", settings, documents, [JOBS])
    await left.store.insert(JOBS, live)
    await left.store.insert(JOBS, done.but(deleting=True, owes="drop"))
    world = World(settings, documents)
    common: dict[str, Any] = {"job_id": live.id, "attempt": 1, "node": "n1", "revision": 4}
    world.others.placements = (
        Lifecycle(event="scheduled", event_id="a", at=after(1), **common),
        Lifecycle(event="started", event_id="b", at=after(2), **common),
        Lifecycle(event="succeeded", event_id="c", at=after(3), outcome=an_outcome(), **common),
    )
    async with world:
        heard = {(await asyncio.wait_for(world.events.get(), 30)).event for _ in range(4)}
        assert heard == {"scheduled", "started", "succeeded", "deleted"}
        (job,) = await world.stored()
        assert (job.id, job.state, job.results) == (live.id, JobState.SUCCEEDED, RESULTS_ID)
        restored = world.others.questions("payload.restore")
        assert restored[0].claims == ((PAYLOAD_ID, live.id),)
        assert [each.job for each in world.others.questions("payload.drop")] == [done.id]


async def test_a_write_that_lost_repeats_no_question(world: World) -> None:
    """An end that loses against a cancel is decided again, and the payload service is asked once."""
    job = await world.create()
    await world.send("scheduled", job, revision=1, node="n1")
    await world.send("started", job, revision=2, node="n1")
    await world.hear("requested", "scheduled", "started")
    ended = Succeeded(at=clock.now(), attempt=1, revision=3, cause="s", node="n1", outcome=an_outcome())
    effects = Effects(world.job)
    await asyncio.gather(*[effects.happened(job.id, each) for each in (ended, CancelRequested(by="ann"))])
    done = await world.get(job.id)
    assert (done.state, done.results) == (JobState.SUCCEEDED, RESULTS_ID)
    assert done.cancel_requested_at
    assert len(world.others.questions("payload.end")) == 1


async def test_a_write_that_lost_is_decided_again(world: World) -> None:
    """Cancel, fold and fold at once all take effect: whoever loses the compare-and-set decides again."""
    job = await world.create()
    effects = Effects(world.job)
    told: list[Event] = [
        Scheduled(at=clock.now(), attempt=1, revision=1, cause="s", node="n1"),
        Started(at=clock.now(), attempt=1, revision=2, cause="r", node="n1"),
        CancelRequested(by="ann"),
    ]
    await asyncio.gather(*[effects.happened(job.id, event) for event in told])
    after_all = await world.get(job.id)
    assert (after_all.state, after_all.revision) == (JobState.RUNNING, 4)
    assert after_all.scheduled_at
    assert after_all.cancel_requested_at
