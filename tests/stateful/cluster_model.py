"""A cluster in one thread, for a machine that lets it go wrong.

The scheduler is the real one, over documents in memory; what is around it are models: the job service, agents with
their hosts, NATS. Time passes when the machine says so.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

from pydantic import SecretStr

from gurney import ids
from gurney.documents.port import Collection, D, Documents, Query, Where, Write
from gurney.errors import GurneyError, NatsUnavailable, NotFound, RevisionConflict, Unavailable
from gurney.heartbeats import Kept
from gurney.model.event import Event
from gurney.model.job import JobState, OwedJobs, PlacementRequest
from gurney.model.resources import Amount, Gpu
from gurney.model.run import (
    Confirm,
    Heartbeat,
    Lifecycle,
    Outcome,
    PlacementsSince,
    RunEnded,
    StartRun,
    StopRun,
)
from gurney.settings import Settings
from gurney.store import Store
from gurney.subjects import HEARTBEAT, JOB_ALIVE, JOB_GET, JOB_OWED
from services.agent import policy
from services.scheduler.admission import AdmissionDesk
from services.scheduler.beats import Beats
from services.scheduler.cluster import Cluster
from services.scheduler.effects import Effects
from services.scheduler.handlers import Handlers
from services.scheduler.leading import leading
from services.scheduler.nodes import Nodes
from services.scheduler.office import Office
from services.scheduler.placer import Placer
from services.scheduler.presence import Presence
from services.scheduler.reconcile import Reconcile
from services.scheduler.runs import Runs
from services.scheduler.tenure import Tenure
from services.scheduler.watch import Watch
from tests.core.scheduler_builders import DIR, NOW, SILENT_AFTER

LOST_S, LEASE_S, ATTEMPTS = 30.0, 60.0, 3
#: A heartbeat that is on its way for longer does not arrive: the next one comes sooner.
BEAT_LIVES_S = 10.0
SETTINGS = Settings(run_secret=SecretStr("a secret of runs"), node_lost_after=LOST_S, infeasible_after=600)


class Clock:
    """What `gurney.clock` tells."""

    def __init__(self) -> None:
        self.monotonic = 1000.0

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.monotonic)


# --- documents and NATS ---


class Memory:
    """The port `documents`, as far as the scheduler uses it. Between two calls others come to their turn."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}

    async def get(self, collection: Collection[D], id: str) -> D | None:  # noqa: A002
        await asyncio.sleep(0)
        return cast("D | None", self.kept.get(collection.name, {}).get(id))

    async def get_many(self, collection: Collection[D], ids: Sequence[str]) -> list[D]:
        found = self.kept.get(collection.name, {})
        return [found[id_] for id_ in ids if id_ in found]

    async def find(self, collection: Collection[D], query: Query) -> list[D]:
        await asyncio.sleep(0)
        found = [each for each in self.kept.get(collection.name, {}).values() if _holds(each, query.where)]
        found.sort(key=lambda each: _key(each, query.sort))
        left = [each for each in found if query.after is None or _key(each, query.sort) > query.after]
        return left[: query.limit]

    async def cas(self, writes: Sequence[Write]) -> list[GurneyError | None]:
        await asyncio.sleep(0)
        return [self._write(write) for write in writes]

    def _write(self, write: Write) -> GurneyError | None:
        documents = self.kept.setdefault(write.collection.name, {})
        known = documents.get(write.id)
        if (known.revision if known else 0) != write.expected:
            return RevisionConflict(write.id)
        if write.document is None:
            del documents[write.id]
        else:
            documents[write.id] = write.document
        return None


def _holds(document: Any, where: Iterable[Where]) -> bool:
    tests: dict[str, Callable[[Any, Any], bool]] = {
        "in": lambda have, want: have in want,
        "<": lambda have, want: have is not None and have < want,
    }
    return all(tests[each.op](getattr(document, each.field), each.value) for each in where)


def _key(document: Any, sort: Sequence[str]) -> tuple[Any, ...]:
    return tuple(getattr(document, name) for name in sort)


@dataclass(frozen=True)
class Message:
    """Something on its way."""

    to: str
    what: StartRun | StopRun | Lifecycle | Heartbeat | PlacementRequest
    sent: float


class Nats:
    """What is on its way, in no order, and the bucket of heartbeats."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.messages: list[Message] = []
        self.bucket: dict[str, tuple[float, Heartbeat]] = {}
        self.created = NOW
        self.on_reconnect: list[Callable[[], None]] = []
        self.raw = SimpleNamespace(is_connected=True)
        self.js = SimpleNamespace(add_consumer=_nothing, delete_consumer=_nothing)
        self.answers: dict[str, Callable[[Any], Any]] = {}

    def wipe(self) -> None:
        """Lose everything that JetStream has."""
        self.messages = []
        self.bucket = {}
        self.created += timedelta(seconds=1)

    def send(self, to: str, what: Any) -> None:
        self.messages.append(Message(to, what, self._clock.monotonic))

    def push(self, collection: object, events: Sequence[Event]) -> None:
        """Play the outbox."""
        del collection
        for event in events:
            kind, second, *rest = event.subject.split(".")
            if kind == "run":
                decode = StartRun.decode if rest[0] == "start" else StopRun.decode
                self.send(second, decode(event.body.encode()))
            elif kind == "lifecycle":
                self.send("job", Lifecycle.decode(event.body.encode()))

    async def publish_events(self, events: Sequence[Event]) -> None:
        self.push(None, events)

    async def request(self, operation: Any, question: Any) -> Any:
        await asyncio.sleep(0)
        return self.answers[operation.subject](question)

    async def latest(self, stream: str) -> list[tuple[str, bytes]]:
        del stream
        return [(HEARTBEAT.of(node_id=name), beat.encode()) for name, (_, beat) in self._there().items()]

    def _there(self) -> dict[str, tuple[float, Heartbeat]]:
        now = self._clock.monotonic
        return {name: (at, beat) for name, (at, beat) in self.bucket.items() if now - at < LOST_S}

    async def read(self, node: str) -> Kept | None:
        """Play `Heartbeats`, as `kept` does."""
        found = self._there().get(node)
        return Kept(1, found[1]) if found else None

    async def kept(self) -> datetime:
        return self.created


async def _nothing(*_: object, **__: object) -> SimpleNamespace:
    return SimpleNamespace(created=NOW)


# --- the job service ---


@dataclass
class Job:
    """A job's document, as far as it matters here."""

    request: PlacementRequest
    state: JobState = JobState.REQUESTED
    canceling: bool = False

    @property
    def is_over(self) -> bool:
        return self.state in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED}


class Jobs:
    """Folds what it is told, in whatever order, and says what it is owed."""

    def __init__(self, nats: Nats) -> None:
        self._nats = nats
        self.jobs: dict[str, Job] = {}
        nats.answers |= {JOB_GET.subject: self._get, JOB_OWED.subject: self._owed, JOB_ALIVE.subject: self._alive}

    def add(self, request: PlacementRequest) -> None:
        self.jobs[request.job_id] = Job(request)
        self._nats.send("scheduler", request)

    def fold(self, told: Lifecycle) -> None:
        job = self.jobs[told.job_id]
        if job.is_over or told.attempt != job.request.attempt or told.event in {"waiting", "progress"}:
            return
        match told.event:
            case "scheduled" | "started":
                job.state = JobState.RUNNING
            case "lost" if job.canceling:
                job.state = JobState.CANCELED
            case "lost" if told.attempt < ATTEMPTS:
                job.state = JobState.REQUESTED
                job.request = job.request.but(attempt=told.attempt + 1)
                self._nats.send("scheduler", job.request)
            case "lost":
                job.state = JobState.FAILED
            case _:
                job.state = JobState(told.event)

    def _get(self, question: Any) -> Any:
        if question.job not in self.jobs:
            raise NotFound(question.job)
        job = self.jobs[question.job]
        return SimpleNamespace(state=job.state, attempt=job.request.attempt)

    def _owed(self, question: Any) -> OwedJobs:
        if question.kind == "requested":
            found = [job for job in self.jobs.values() if job.state is JobState.REQUESTED]
        else:
            found = [job for job in self.jobs.values() if job.canceling and not job.is_over]
        at = datetime.now(UTC)
        return OwedJobs(
            items=tuple(job.request.but(cancel_requested_at=at if job.canceling else None) for job in found)
        )

    def _alive(self, question: Any) -> Any:
        return SimpleNamespace(live=tuple(each for each in question.jobs if not self.jobs[each].is_over))

    @property
    def running(self) -> tuple[str, ...]:
        """Return the runs that it would ask the scheduler about."""
        return tuple(
            ids.run_id(job.request.job_id, job.request.attempt) for job in self.jobs.values() if not job.is_over
        )


# --- hosts ---


@dataclass
class Run:
    """An agent's journal of a run, and its process."""

    start: StartRun
    lives: bool = False
    lease_until: float = 0.0
    outcome: Outcome | None = None


class Host:
    """A host, its agent, and who watches over its runs apart from that."""

    def __init__(self, name: str, cpu: float, gpus: int, started: Counter[str]) -> None:
        self.name = name
        self.is_up = True
        self.is_cut_off = False
        self.lives = 1
        self.epoch = 0
        self.capacity = Amount(cpu=cpu, memory=1 << 40, gpus=gpus)
        self.gpus = tuple(Gpu(uuid=f"GPU-{name}-{each}", model="A", memory=1 << 30) for each in range(gpus))
        self.journal: dict[str, Run] = {}
        self._started = started

    @property
    def is_there(self) -> bool:
        return self.is_up and not self.is_cut_off

    def beat(self, now: float) -> Heartbeat:
        """Beat; JetStream has it."""
        for run in self.journal.values():
            if run.lives and run.lease_until > now:
                run.lease_until = now + LEASE_S
        return Heartbeat(
            node=self.name,
            incarnation=f"{self.lives}",
            home=self.name,
            epoch=self.epoch,
            lease=LEASE_S,
            at=NOW + timedelta(seconds=now),
            capacity=self.capacity,
            gpus=self.gpus,
            kinds=(DIR,),
            runs=tuple(self.journal),
        )

    def is_current(self, command: StartRun | StopRun) -> bool:
        if command.epoch < self.epoch:
            return False
        self.epoch = command.epoch
        return True

    def hears(self, command: StartRun | StopRun) -> None:
        known = self.journal.get(command.run_id)
        if isinstance(command, StopRun):
            if self.is_current(command) and known and known.outcome is None:
                self.ends(known, Outcome(ending="canceled"))
        elif known is None and self.is_current(command):
            others = [run.start for run in self.journal.values() if run.outcome is None]
            if policy.fits(self.capacity, {}, others, command):
                self.journal[command.run_id] = Run(command)

    def is_answered(self, run_id: str, *, start: bool, asked: float) -> None:
        """Hear whether a run may start."""
        if not start:
            self.journal.pop(run_id)
            return
        run = self.journal[run_id]
        run.lives, run.lease_until = True, asked + LEASE_S
        self._started[run_id] += 1

    def ends(self, run: Run, outcome: Outcome) -> None:
        run.lives, run.outcome = False, outcome

    def watch(self, now: float) -> None:
        """End what has no lease any more: whoever does so needs neither the agent nor the network."""
        for run in self.journal.values():
            if run.lives and run.lease_until <= now:
                self.ends(run, Outcome(ending="lost"))

    def restarts(self, *, whole: bool) -> None:
        """Come up again. `whole`: the host went down, and all that ran there with it."""
        self.is_up = True
        self.lives += 1
        for run in self.journal.values():
            if whole and run.lives:
                self.ends(run, Outcome(ending="lost"))


# --- the scheduler ---


class Ending(Tenure):
    """A tenure whose end is heard of at once."""

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self._then = then

    def end(self) -> None:
        super().end()
        self._then()


class Leader:
    """One time of leading, put together as `services.scheduler.__main__` does, without NATS."""

    def __init__(self, nats: Nats, documents: Memory, epoch: int) -> None:
        bus = cast("Any", nats)
        service = SimpleNamespace(bus=bus, settings=SETTINGS, reconcile_soon=lambda: None)
        self.tenure = Ending(self.close)
        self.tenure.begin(epoch)
        self.tenure.hold_until(1e18)
        store = Store(cast("Documents", documents), bus).guarded(self.tenure.check)
        effects = Effects(bus, SETTINGS)
        self.cluster = Cluster(SILENT_AFTER)
        self.office = Office(cast("Any", service), store, self.tenure, self.cluster, Presence(LOST_S), effects)
        self.placer = Placer(self.office)
        self.runs = Runs(self.office, self.placer.ledger)
        self.beats = Beats(self.office, self.placer, self.runs)
        self.desk = AdmissionDesk(self.office, self.placer)
        self.nodes = Nodes(self.office, self.placer)
        handlers = Handlers(self.tenure, self.desk, self.runs, self.nodes, self.beats)
        self.reconcile = Reconcile(self.office, handlers, self.placer.ledger)
        self.watch = Watch(self.office, self.beats, self.runs)
        kept = SimpleNamespace(read=nats.read, created=nats.kept)
        self.watch._kept = self.beats._kept = cast("Any", kept)
        self._leading = contextlib.AsyncExitStack()

    def close(self) -> None:
        """Do nothing more, as a service whose tenure is over."""
        self.placer._closed = True

    async def begin(self) -> None:
        waiting = SimpleNamespace(close=_nothing)
        await self._leading.enter_async_context(leading(self.office, self.placer, cast("Any", waiting)))
        self.watch._begin_anew()

    async def confirm(self, start: StartRun, node: str) -> bool:
        self.tenure.check()
        return (await self.runs.confirm(Confirm(run_id=start.run_id, node=node, epoch=start.epoch))).start

    async def ended(self, run_id: str, node: str, outcome: Outcome) -> None:
        self.tenure.check()
        await self.runs.ended(RunEnded(run_id=run_id, node=node, outcome=outcome))

    async def placements(self, runs: tuple[str, ...]) -> tuple[Lifecycle, ...]:
        self.tenure.check()
        return (await self.desk.placements(PlacementsSince(runs=runs))).items


class Loop:
    """Runs what is asked for to its end, and all that comes of it. Nobody waits for a time that does not pass."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._faults: list[BaseException] = []
        self._loop.set_exception_handler(lambda _, context: self._faults.append(context["exception"]))

    def run(self, *work: Coroutine[Any, Any, Any]) -> list[Any]:
        """Do these at the same time; return answers, and faults that a caller would see."""
        return self._loop.run_until_complete(self._all(work))

    async def _all(self, work: Sequence[Awaitable[Any]]) -> list[Any]:
        answers = await asyncio.gather(*work, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, Unavailable | NatsUnavailable | NotFound):
                raise answer
        mine = asyncio.current_task()
        while True:
            await asyncio.sleep(0)  # what was put off to this turn
            tasks = [each for each in asyncio.all_tasks() if each is not mine]
            if self._faults:  # of what nobody waits for
                raise self._faults.pop()
            if not tasks:
                return answers
            await asyncio.wait(tasks)

    def close(self) -> None:
        self._loop.close()
