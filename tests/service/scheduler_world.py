"""The scheduler over a real nats-server and real documents; the job service and the agents are played by the test."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import Any, Self, TypeVar

from gurney import clock, ids
from gurney.bus import Bus
from gurney.documents.port import Documents
from gurney.errors import NotFound
from gurney.model.common import Page
from gurney.model.event import event_of
from gurney.model.job import (
    Admission,
    CancelJob,
    Job,
    JobEvent,
    JobOwed,
    JobRefs,
    JobsAlive,
    JobState,
    MapRef,
    OwedJobs,
    PlacementRequest,
    Priority,
    RunRequest,
)
from gurney.model.map import InspectMap
from gurney.model.resources import Amount, Gpu, Resources
from gurney.model.run import (
    Admit,
    Confirm,
    Confirmed,
    Heartbeat,
    Lifecycle,
    Node,
    NodeEvent,
    NodeList,
    Outcome,
    Placement,
    PlacementState,
    RunEnded,
    RunReport,
    StartRun,
    StopRun,
)
from gurney.service import Parts, Service
from gurney.settings import GIB, Settings
from gurney.subjects import (
    CANCEL,
    HEARTBEAT,
    JOB_ALIVE,
    JOB_EVENT,
    JOB_GET,
    JOB_OWED,
    RUN_REPORT,
    SCHEDULER_ADMIT,
    SCHEDULER_CONFIRM,
    SCHEDULER_ENDED,
    SCHEDULER_NODES,
)
from services.scheduler.__main__ import build
from services.scheduler.repository import PLACEMENTS

T = TypeVar("T")

DIR = "urn:gurney:dir:"
PATIENCE_S = 10.0


def a_run(urn: str = f"{DIR}sample", **resources: Any) -> RunRequest:
    return RunRequest(
        urn=urn,
        digest="sha256:0",
        generation="monai",
        command=("true",),
        input_path="input",
        output_path="output",
        payload=f"pay_{'0' * 26}",
        resources=Resources(**{"cpu": 1.0, "memory": GIB} | resources),
    )


def a_request(*, attempt: int = 1, at: datetime | None = None, **resources: Any) -> PlacementRequest:
    at = at or clock.now()
    return PlacementRequest(
        job_id=ids.new_id("job"),
        attempt=attempt,
        project="default",
        created_by="tester",
        priority=resources.pop("priority", Priority.NORMAL),
        requested_at=at,
        created_at=at,
        request=a_run(**resources),
    )


def an_admission(admission: Admission = Admission.REJECT, *, job_id: str = "", **more: Any) -> Admit:
    given = {name: more.pop(name) for name in ("dry_run", "priority") if name in more}
    return Admit(
        **{"priority": Priority.NORMAL} | given,
        job_id=job_id or ids.new_id("job"),
        project="default",
        admission=admission,
        request=a_run(**more),
    )


def job_of(request: PlacementRequest, state: JobState = JobState.REQUESTED) -> Job:
    return Job(
        id=request.job_id,
        created_at=request.created_at,
        map=MapRef(id="map_0", urn=request.request.urn, digest="sha256:0"),
        payload=request.request.payload,
        state=state,
        attempt=request.attempt,
        resources=request.request.resources,
        admission=Admission.QUEUE,
        request=request.request,
    )


class JobService:
    """Plays the job service: what it is asked is in its fields."""

    def __init__(self, settings: Settings) -> None:
        self.requested: dict[str, PlacementRequest] = {}
        self.canceling: dict[str, PlacementRequest] = {}
        self.jobs: dict[str, Job] = {}
        self.live: set[str] = set()
        self.service = Service("job", settings).does(
            Parts(answers={JOB_GET: self._get, JOB_OWED: self._owed, JOB_ALIVE: self._alive})
        )

    async def _get(self, question: Any) -> Job:
        if question.job not in self.jobs:
            raise NotFound(question.job)
        return self.jobs[question.job]

    async def _owed(self, question: JobOwed) -> OwedJobs:
        """Answer with pages of one."""
        owed = sorted((self.requested if question.kind == "requested" else self.canceling).items())
        left = [(job_id, request) for job_id, request in owed if question.after is None or job_id > question.after]
        following = left[0][0] if len(left) > 1 else None
        return OwedJobs(items=tuple(request for _, request in left[:1]), next=following)

    async def _alive(self, question: JobRefs) -> JobsAlive:
        return JobsAlive(live=tuple(job for job in question.jobs if job in self.live))


class World:
    """The scheduler and what it tells: starts, stops, inspections, lifecycle events and events of nodes."""

    def __init__(self, settings: Settings, documents: Documents, *, alone: bool = True) -> None:
        """Not `alone`: the test starts the schedulers itself."""
        self.settings = settings
        self.documents = documents
        self._alone = alone
        self.job = JobService(settings)
        self.client = Service("edge", settings)
        self.starts: asyncio.Queue[StartRun] = asyncio.Queue()
        self.stops: asyncio.Queue[StopRun] = asyncio.Queue()
        self.inspections: asyncio.Queue[InspectMap] = asyncio.Queue()
        self.lifecycle: asyncio.Queue[Lifecycle] = asyncio.Queue()
        self.nodes: asyncio.Queue[NodeEvent] = asyncio.Queue()
        self._heard: set[str | None] = set()
        self._stack = AsyncExitStack()
        self.scheduler = build(settings, documents=documents, alone=alone)
        #: The reconciler: a round comes when the test asks for it, and at no other time.
        self.reconciler: Any = self.scheduler._parts.reconcile
        self.scheduler._parts.reconcile = None

    @property
    def bus(self) -> Bus:
        return self.client.bus

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.client)
        for subject, queue, decode in (
            ("run.*.start.*", self.starts, StartRun.decode),
            ("run.*.stop.*", self.stops, StopRun.decode),
            ("run.*.inspect.*", self.inspections, InspectMap.decode),
            ("lifecycle.*.*", self.lifecycle, Lifecycle.decode),
            ("node.*.*", self.nodes, NodeEvent.decode),
        ):
            await self.bus.subscribe(subject, self._hear(queue, decode))
        await self._stack.enter_async_context(self.job.service)
        if self._alone:
            await self._stack.enter_async_context(self.scheduler)
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

    # --- the job service ---

    async def request(self, request: PlacementRequest | None = None, **resources: Any) -> PlacementRequest:
        """Have a job requested, as its document says."""
        request = request or a_request(**resources)
        self.job.requested[request.job_id] = request
        self.job.live.add(request.job_id)
        await self.tell(request)
        return request

    async def tell(self, request: PlacementRequest) -> None:
        """Publish `job.requested`."""
        job, event_id = job_of(request), ids.new_id("evt")
        data = JobEvent(
            id=job.id,
            event="requested",
            event_id=event_id,
            at=request.requested_at,
            project=job.project,
            created_by=job.created_by,
            name=None,
            labels={},
            map=job.map,
            payload=job.payload,
            results=None,
            state=job.state,
            attempt=request.attempt,
            created_at=job.created_at,
            placement=request,
        )
        await self._publish(JOB_EVENT.of(event="requested", job_id=job.id), data, event_id)

    async def cancel(self, request: PlacementRequest) -> None:
        data = CancelJob(job_id=request.job_id, attempt=request.attempt, at=clock.now())
        await self._publish(CANCEL.of(job_id=request.job_id), data, ids.new_id("evt"))

    async def admit(self, admission: Admission = Admission.REJECT, *, job_id: str = "", **more: Any) -> str:
        """Ask for admission; returns the job's id."""
        question = an_admission(admission, job_id=job_id, **more)
        await self.bus.request(SCHEDULER_ADMIT, question)
        return question.job_id

    # --- the agent ---

    async def beat(self, node: str = "n1", **more: Any) -> Heartbeat:
        """Have a node show that it is there."""
        fields = {
            "incarnation": "i1",
            "at": clock.now(),
            "capacity": Amount(cpu=2, memory=8 * GIB),
            "kinds": (DIR,),
        } | more
        beat = Heartbeat(node=node, **fields)
        await self._publish(HEARTBEAT.of(node_id=node), beat, ids.new_id("evt"))
        return beat

    async def join(self, node: str = "n1", **more: Any) -> None:
        """Have a node join, and wait until it did."""
        await self.beat(node, **more)
        assert (await self.next(self.nodes)).id == node

    async def joined_with_gpus(self, count: int) -> None:
        gpus = tuple(Gpu(uuid=f"GPU-{each}", model="A", memory=GIB) for each in range(count))
        await self.join(gpus=gpus, capacity=Amount(cpu=8, memory=8 * GIB, gpus=count))

    async def confirm(self, start: StartRun) -> Confirmed:
        return await self.bus.request(
            SCHEDULER_CONFIRM, Confirm(run_id=start.run_id, node=start.node, epoch=start.epoch)
        )

    async def report(self, start: StartRun, phase: Any, **counts: int) -> None:
        report = RunReport(run_id=start.run_id, node=start.node, phase=phase, at=clock.now(), **counts)
        subject = RUN_REPORT.of(node_id=start.node, phase=phase, run_id=start.run_id)
        await self._publish(subject, report, ids.new_id("evt"))

    async def end(self, start: StartRun, ending: Any = "succeeded", **more: Any) -> None:
        outcome = Outcome(ending=ending, **more)
        await self.bus.request(SCHEDULER_ENDED, RunEnded(run_id=start.run_id, node=start.node, outcome=outcome))

    async def started(self, **resources: Any) -> StartRun:
        """Return a confirmed run of a new job, all that was told of it so far being heard."""
        request = await self.request(**resources)
        start = await self.next(self.starts)
        assert (await self.confirm(start)).start
        while (await self.next(self.lifecycle)).event_id != ids.job_event_id(request.job_id, 1, "scheduled"):
            pass
        return start

    # --- what was told ---

    async def next(self, queue: "asyncio.Queue[T]") -> T:
        return await asyncio.wait_for(queue.get(), PATIENCE_S)

    async def hear(self, *events: str) -> list[Lifecycle]:
        """Return the next lifecycle events, which must be these."""
        heard = [await self.next(self.lifecycle) for _ in events]
        assert [each.event for each in heard] == list(events)
        return heard

    async def until(self, holds: Callable[[], Awaitable[T | None]]) -> T:
        """Return the first thing that is there; for what no message tells of."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if found := await holds():
                    return found
                await asyncio.sleep(0.01)

    async def placement(self, run_id: str) -> Placement:
        return await self.scheduler.store.get(PLACEMENTS, run_id)

    async def becomes(self, run_id: str, state: PlacementState) -> Placement:
        """Return a placement as soon as it is in this state."""

        async def holds() -> Placement | None:
            found = await self.documents.get(PLACEMENTS, run_id)
            return found if found and found.state is state else None

        return await self.until(holds)

    async def node(self, name: str = "n1") -> Node:
        page: Page[Node] = await self.bus.request(SCHEDULER_NODES, NodeList())
        return next(node for node in page.items if node.id == name)

    async def reconciled(self) -> None:
        """Run a round of the reconciler."""
        await self.reconciler()

    async def age(self, run_id: str, seconds: float) -> None:
        """Have a placement written this much earlier, in documents and memory, by whatever clock."""
        back = timedelta(seconds=seconds)
        stamps = ("placed_at", "confirmed_at", "ended_at", "cancel_requested_at")

        def older(found: Placement) -> tuple[Placement, tuple[()]]:
            changes = {name: at - back for name in stamps if (at := getattr(found, name))}
            return found.next(**changes), ()

        placement = await self.scheduler.store.update(PLACEMENTS, run_id, older)
        self.cluster.put(placement)
        presence = self.reconciler._presence
        presence._written[run_id] = presence._written.get(run_id, clock.monotonic()) - seconds
        presence._since = min(presence._since, presence._written[run_id])

    @property
    def cluster(self) -> Any:
        """What the scheduler holds in memory."""
        return self.reconciler._cluster

    async def _publish(self, subject: str, data: Any, event_id: str) -> None:
        await self.bus.publish_events([event_of(subject, data, id=event_id, source="test", at=clock.now())])
