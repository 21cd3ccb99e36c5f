"""Jobs: the document, what clients send, and the events of a job's life."""

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from gurney.model.access import Caller
from gurney.model.base import Idempotency, Input, InputLabels, Labels, Message, Owned, Reason, Timestamp
from gurney.model.common import Filtered
from gurney.model.map import Generation, StaticContent
from gurney.model.resources import AskedResources, Resources


class JobState(StrEnum):
    REQUESTED = "requested"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED})
LIVE = frozenset(JobState) - TERMINAL


class Priority(StrEnum):
    LOWER = "lower"
    NORMAL = "normal"
    HIGHER = "higher"
    IMMEDIATE = "immediate"


class Admission(StrEnum):
    QUEUE = "queue"  #: wait for room
    REJECT = "reject"  #: room now, or 503


class MapRef(Message):
    id: str
    name: str | None = None
    urn: str
    digest: str


class Phase(Message):
    """`pulling`, `staging`, `running` or `collecting`, with counts of what is being moved."""

    name: str
    done: int | None = None
    total: int | None = None


class Waiting(Message):
    position: int
    reasons: tuple["WaitReason", ...] = ()
    estimated_start: Timestamp | None = None
    #: None: no node that is known could hold the job, or it asks more than its project's quota.
    blocker: "Blocker | None" = None


class Blocker(Message):
    """What keeps a job from starting, on the node that is nearest to having room: without all of it, it would start."""

    node: str
    #: Why the node takes no jobs: `lost`, `silent`, `draining`.
    standing: tuple[str, ...] = ()
    #: How many live runs would have to end: they hold what it needs there, or of its project's quota.
    runs: int = 0
    #: How many jobs go first and would take what it needs; from 500 on there may be more.
    jobs: int = 0
    #: The runs; told to administrators only, as they may be of others.
    run_ids: tuple[str, ...] = ()
    #: The first ten of the jobs; told to administrators only.
    job_ids: tuple[str, ...] = ()
    message: str


#: What keeps a run within the GPU memory that it was given: it is looked at, and ended when it takes more
#: (`watched`), or there is no more (`walled`: it has its GPUs or MIG instances for itself).
GpuLimit = Literal["watched", "walled"]


class WaitReason(Message):
    code: str
    #: How many nodes give this reason.
    count: int
    message: str


class Timings(Message):
    """Seconds of a job's wall time, by phase; `other` is the rest."""

    queued: float | None = None
    pulling: float | None = None
    staging: float | None = None
    running: float | None = None
    collecting: float | None = None
    other: float | None = None


class Usage(Message):
    """What one attempt used, as far as it was measured. Counted from begin to end of the application."""

    #: Processor time in seconds, of all its processes.
    cpu_s: float | None = None
    #: Bytes that its processes held at once, without the cache of files.
    peak_memory: int | None = None
    #: Seconds from begin to end.
    wall_s: float | None = None
    #: Bytes of the files that it found, and of those that it left.
    bytes_in: int | None = None
    bytes_out: int | None = None
    #: Bytes that it held at once on all its GPUs, as seen about once a second; None: it had none, or was too short.
    gpu_peak_memory: int | None = None
    #: Share of the time in which its GPUs computed, their mean, 0 to 1; None also where the driver does not tell.
    gpu_utilization: float | None = None


class LogInfo(Message):
    attempt: int
    bytes: int
    sha256: str


class RunRequest(Message):
    """What was frozen when the job was accepted: all that a run needs to know, whatever becomes of the MAP."""

    urn: str
    digest: str
    generation: Generation
    command: tuple[str, ...]
    environment: dict[str, str] = {}
    working_directory: str | None = None
    input_path: str
    output_path: str
    #: Payload id of the input.
    payload: str
    resources: Resources
    #: Its MAP allows that its GPU is shared, where it asks a share of one.
    gpu_sharing: bool = False
    #: Seconds; 0: none.
    timeout_s: float | None = None
    #: Nothing of its data may stay: no log leaves the node, and how it ended is told without texts of the application.
    transient: bool = False
    hardening: Literal["strict", "compatible"] = "strict"
    network: bool = False
    content: StaticContent | None = None


class StoryItem(Message):
    """One thing that happened to a job, and why."""

    at: Timestamp
    event: str
    attempt: int
    node: str | None = None
    #: Id of the message that caused it.
    cause: str | None = None
    message: str | None = None


class Story(Message):
    """What happened to a job and why, in order."""

    items: tuple[StoryItem, ...]


class Folded(Message):
    """How far lifecycle events are folded in: they apply in the order (attempt, placement revision)."""

    attempt: int = 0
    revision: int = 0


class Counts(Message):
    """Files and bytes of the results."""

    files: int = 0
    bytes: int = 0


class Job(Owned):
    PRIVATE: ClassVar[frozenset[str]] = frozenset(
        {
            "idempotency",
            "request",
            "story",
            "folded",
            "notified",
            "failures",
            "counts",
            "deleting",
            "requested_at",
            "avoid",
            "owes",
            "traceparent",
            "awaited_until",
        }
    )
    LIST_OMITS: ClassVar[frozenset[str]] = frozenset({"log_tail", "waiting", "metadata", "usage", "timings"})

    name: str | None = None
    labels: Labels = {}
    parent: str | None = None
    map: MapRef
    #: Payload id of the input, and of the results once they are bound.
    payload: str
    results: str | None = None
    state: JobState
    phase: Phase | None = None
    reason: Reason | None = None
    waiting: Waiting | None = None
    attempt: int = 1
    exit_code: int | None = None
    node: str | None = None
    #: None: it has no GPU, or no node yet.
    gpu_limit: GpuLimit | None = None
    priority: Priority = Priority.NORMAL
    resources: Resources
    #: Seconds that a run may take; 0: as long as it wants.
    timeout_s: float | None = None
    admission: Admission
    #: How often a failure of the application is retried.
    retries: int = 0
    #: Given: exactly these. None: all that match.
    handlers: tuple[str, ...] | None = None
    #: Its data go with the answer to who waits for it; what stays is this record.
    transient: bool = False
    metadata: dict[str, Any] | None = None
    usage: Usage | None = None
    timings: Timings = Timings()
    logs: tuple[LogInfo, ...] = ()
    log_tail: tuple[str, ...] = ()
    scheduled_at: Timestamp | None = None
    started_at: Timestamp | None = None
    stopped_at: Timestamp | None = None
    finalized_at: Timestamp | None = None
    cancel_requested_at: Timestamp | None = None

    request: RunRequest
    story: tuple[StoryItem, ...] = ()
    folded: Folded = Folded()
    counts: Counts = Counts()
    #: Every handler's delivery is in the notifier's documents.
    notified: bool = False
    #: Of a transient job whose data have not gone: who waits for it has said that he waits until then.
    awaited_until: Timestamp | None = None
    #: Attempts that ended by a fault of the infrastructure, and by one of the application.
    failures: tuple[int, int] = (0, 0)
    #: When this attempt began to wait; None: the first, at `created_at`.
    requested_at: Timestamp | None = None
    #: Nodes on which an attempt was lost.
    avoid: tuple[str, ...] = ()
    #: What the payload service has yet to be told: that the input claim goes, all data, or the whole job.
    owes: Literal["finalize", "discard", "drop"] | None = None
    deleting: bool = False
    #: Trace context of the request that made it: what happens to the job is in this trace.
    traceparent: str | None = None

    @property
    def terminal(self) -> bool:
        return self.state in TERMINAL


class CreateJob(Input):
    """Body of POST /v1/jobs."""

    #: MAP and payload, each by id or name.
    map: str
    payload: str
    name: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    labels: InputLabels = {}
    handlers: tuple[str, ...] | None = None
    priority: Priority = Priority.NORMAL
    resources: AskedResources | None = None
    #: Over that of the MAP, which is over the deployment's; 0: none.
    timeout_s: Annotated[float, Field(ge=0, le=31_536_000)] | None = None
    retries: Annotated[int, Field(ge=0, le=10)] = 0
    admission: Admission | None = None


class JobCreate(Message):
    caller: Caller
    body: CreateJob
    idempotency: Idempotency | None = None
    dry_run: bool = False
    #: Who asks waits for its end and says so all the time; its data go with him.
    transient: bool = False


class JobList(Filtered):
    map: str | None = None
    payload: str | None = None
    state: JobState | None = None
    completed_after: Timestamp | None = None
    completed_before: Timestamp | None = None


class JobGet(Message):
    """A job for a caller (404 where he may not see it), or for a service (caller None)."""

    caller: Caller | None = None
    job: str


class JobRefs(Message):
    jobs: tuple[str, ...] = Field(max_length=256)


class JobsAlive(Message):
    """Of the jobs asked for, those that exist: `live` ones, and ones that have ended."""

    live: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    #: Of those that have ended, the ones that have let go of their inputs.
    finalized: tuple[str, ...] = ()


class JobOwed(Message):
    """What a reconciler is owed: a page of jobs by kind, oldest first."""

    #: `requested`: wait for a placement; `canceling`: live, cancel asked for; `unnotified`: ended, not yet told.
    kind: Literal["requested", "canceling", "unnotified"]
    after: str | None = None
    limit: int = Field(default=100, ge=1, le=100)


class MapJobs(Message):
    """How many live jobs a MAP has: asked by the MAP's owner before it unregisters."""

    map: str


class LiveJobs(Message):
    jobs: tuple[str, ...]
    count: int


class PlacementRequest(Message):
    """What the scheduler needs to know of a job; the data of `job.requested` carries it, and `owed` returns it."""

    job_id: str
    attempt: int
    project: str
    created_by: str
    priority: Priority
    #: When this attempt began to wait; the first attempt's `created_at`.
    requested_at: Timestamp
    created_at: Timestamp
    cancel_requested_at: Timestamp | None = None
    #: Nodes on which an attempt was lost: tried last.
    avoid: tuple[str, ...] = ()
    request: RunRequest
    #: W3C trace context of the job.
    traceparent: str | None = None


class OwedJobs(Message):
    items: tuple[PlacementRequest, ...] = ()
    #: Events of ended jobs, for `unnotified`.
    ended: tuple["JobEvent", ...] = ()
    next: str | None = None


class JobEvent(Message):
    """Data of `job.<event>.<job_id>`. No free text of the application."""

    id: str
    event: str
    event_id: str
    at: Timestamp
    project: str
    created_by: str
    name: str | None
    labels: Labels
    map: MapRef
    payload: str
    results: str | None
    state: JobState
    attempt: int
    reason: str | None = None
    exit_code: int | None = None
    node: str | None = None
    phase: Phase | None = None
    counts: Counts = Counts()
    created_at: Timestamp
    scheduled_at: Timestamp | None = None
    started_at: Timestamp | None = None
    stopped_at: Timestamp | None = None
    handlers: tuple[str, ...] | None = None
    #: With `requested` only.
    placement: PlacementRequest | None = None
    #: W3C trace context of the job, where an answer carries the event: a message has its own in its headers.
    traceparent: str | None = None


class CancelJob(Message):
    """Data of `cancel.<job_id>`."""

    job_id: str
    attempt: int
    at: Timestamp


Waiting.model_rebuild()
OwedJobs.model_rebuild()
