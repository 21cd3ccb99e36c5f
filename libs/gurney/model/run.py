"""Placements, nodes, runs: what passes between scheduler, agents and job."""

from enum import StrEnum
from typing import Any, ClassVar, Literal

from pydantic import Field

from gurney.model.base import Document, Labels, Message, Reason, Timestamp
from gurney.model.job import Admission, GpuLimit, LogInfo, Phase, Priority, RunRequest, Timings, Usage, Waiting
from gurney.model.resources import Amount, Gpu, Resources


class PlacementState(StrEnum):
    RESERVED = "reserved"  #: room held for a job that is being accepted
    PLACED = "placed"  #: decided, the agent was told
    CONFIRMED = "confirmed"  #: the agent may start, or has started
    ENDED = "ended"
    CANCELED = "canceled"  #: ended before it was confirmed


LIVE_PLACEMENTS = frozenset({PlacementState.RESERVED, PlacementState.PLACED, PlacementState.CONFIRMED})

Ending = Literal["succeeded", "failed", "canceled", "lost"]


class Outcome(Message):
    """How a run ended, as its agent tells it."""

    ending: Ending
    reason: Reason | None = None
    exit_code: int | None = None
    started_at: Timestamp | None = None
    stopped_at: Timestamp | None = None
    timings: Timings = Timings()
    usage: Usage | None = None
    metadata: dict[str, Any] | None = None
    log: LogInfo | None = None
    #: At most 100 lines and 16 KiB.
    log_tail: tuple[str, ...] = ()
    #: Whether a draft with files is there to bind.
    output: bool = False


class Placement(Document):
    """Where one attempt of a job runs. Its id is the run id."""

    job_id: str
    attempt: int
    project: str
    priority: Priority
    state: PlacementState
    #: None for a placement that was canceled before one was chosen.
    node: str | None
    resources: Resources
    gpus: tuple[str, ...] = ()
    #: MiB of its one GPU, which it shares; 0: its GPUs are its own.
    gpu_share: int = 0
    #: The leadership under which it was written.
    epoch: int
    request: RunRequest | None
    requested_at: Timestamp
    placed_at: Timestamp
    confirmed_at: Timestamp | None = None
    started_at: Timestamp | None = None
    ended_at: Timestamp | None = None
    cancel_requested_at: Timestamp | None = None
    outcome: Outcome | None = None
    #: Lifecycle event -> the revision that told of it.
    told: dict[str, int] = {}
    #: Trace context of the decision: what becomes of the run is in this trace.
    traceparent: str | None = None

    @property
    def live(self) -> bool:
        return self.state in LIVE_PLACEMENTS

    @property
    def gpu_limit(self) -> GpuLimit | None:
        """What keeps its run within the GPU memory that it was given; None: it was given none."""
        if not self.gpus:
            return None
        return "watched" if self.gpu_share else "walled"


class Leadership(Document):
    """The scheduler's lease. `epoch` grows with each take-over; a renewal changes the revision and nothing else."""

    epoch: int
    #: Who took it: new at each take-over.
    holder: str = ""
    #: The holder's process, by which one of the same host can see that it has ended; empty: not known.
    process: str = ""
    #: The holder has let go.
    released: bool = False


class ProjectPast(Document):
    """What a project has had of the cluster, for whoever leads next. Its id is the project."""

    #: The leadership under which it was written.
    epoch: int
    #: What was left of it at `at`, in units of the whole cluster in steady use.
    value: float
    at: Timestamp


class RunTimes(Document):
    """How long runs of a MAP held their room, for whoever leads next. Its id is the MAP's digest."""

    #: The leadership under which it was written.
    epoch: int
    #: Seconds of each of the last ones, the oldest first.
    seconds: tuple[float, ...]


class NodeState(StrEnum):
    READY = "ready"
    DRAINING = "draining"
    LOST = "lost"


def short(digest: str) -> str:
    """Return a digest as heartbeats name it: its first 12 digits, as people know them from Docker."""
    return digest.rpartition(":")[2][:12]


class Heartbeat(Message):
    """agent -> scheduler, through KV `heartbeats`, key: node id."""

    node: str
    #: New at each start of the agent.
    incarnation: str
    #: The agent's data folder: the same after a restart, another on another host.
    home: str = ""
    #: The newest leadership of a scheduler that the agent has heard of.
    epoch: int = 0
    #: Seconds for which a run lives on after the last heartbeat that named it; None: its runs have no lease.
    lease: float | None = None
    at: Timestamp
    labels: Labels = {}
    simulated: bool = False
    capacity: Amount
    gpus: tuple[Gpu, ...] = ()
    #: Its pool allows that jobs which ask a share of a GPU share one.
    gpu_sharing: bool = False
    #: URN prefixes that the node's runtimes run.
    kinds: tuple[str, ...]
    #: What the node lacks now, for people: such as the Docker daemon that should answer.
    faults: tuple[str, ...] = ()
    #: Short digests of what it holds of MAPs: images, copies of folders, what MAPs bring along.
    images: tuple[str, ...] = ()
    #: Runs that the agent has in its journal.
    runs: tuple[str, ...] = ()


class Node(Document):
    """A host with an agent. `used` and `free` are derived when asked for."""

    PRIVATE: ClassVar[frozenset[str]] = frozenset({"incarnation", "home", "lease", "revision"})

    state: NodeState
    #: An administrator has said that it takes no new jobs; kept while the node is lost.
    drained: bool = False
    labels: Labels = {}
    simulated: bool = False
    capacity: Amount
    used: Amount = Amount()
    free: Amount = Amount()
    gpus: tuple[Gpu, ...] = ()
    gpu_sharing: bool = False
    images: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    incarnation: str = ""
    home: str = ""
    lease: float | None = None
    last_seen_at: Timestamp


class NodeList(Message):
    limit: int = Field(default=100, ge=1, le=1000)
    cursor: str | None = None


class Admit(Message):
    """job -> scheduler: may this job come in? `reject` reserves or raises `NoRoom`; what never fits is refused."""

    job_id: str
    project: str
    priority: Priority
    admission: Admission
    request: RunRequest
    #: Nothing is written.
    dry_run: bool = False


class Admitted(Message):
    """The job may come in; `reserved` tells whether room is held for it."""

    reserved: bool
    #: Of a dry run: the node that the job would go to now; None where it would wait, as `waiting` says.
    node: str | None = None
    waiting: Waiting | None = None


class Release(Message):
    """job -> scheduler: the create was given up, its reservation goes."""

    job_id: str


class Explain(Message):
    job_id: str
    #: With the ids of runs and jobs that are in its way, which may be of others.
    names: bool = False


class Explained(Message):
    waiting: Waiting | None


class StartRun(Message):
    """Data of `run.<node_id>.start.<run_id>`."""

    run_id: str
    job_id: str
    attempt: int
    node: str
    epoch: int
    gpus: tuple[str, ...] = ()
    #: MiB of its one GPU, which it shares; 0: its GPUs are its own.
    gpu_share: int = 0
    request: RunRequest
    project: str = "default"
    #: Lets the run's agent read its input and write its results and log, nothing else.
    token: str
    #: Lets it read what the MAP brings along; empty: it brings nothing.
    content_token: str = ""


class StopRun(Message):
    """Data of `run.<node_id>.stop.<run_id>`."""

    run_id: str
    node: str
    epoch: int
    reason: str


class Confirm(Message):
    """agent -> scheduler: may I start? Idempotent for the same node."""

    run_id: str
    node: str
    epoch: int


class Confirmed(Message):
    start: bool
    #: Why not.
    message: str = ""


class RunReport(Message):
    """agent -> scheduler, `report.run.<node_id>.<phase>.<run_id>`: phases before the end."""

    run_id: str
    node: str
    phase: Literal["pulling", "staging", "running", "collecting"]
    at: Timestamp
    done: int | None = None
    total: int | None = None


class RunEnded(Message):
    """agent -> scheduler (`svc.scheduler.ended`): repeated until answered; answered when the placement says it."""

    run_id: str
    node: str
    outcome: Outcome


class Lifecycle(Message):
    """scheduler -> job, `lifecycle.<event>.<job_id>`."""

    event: Literal["waiting", "scheduled", "progress", "started", "succeeded", "failed", "canceled", "lost"]
    event_id: str
    job_id: str
    attempt: int
    #: Revision of the placement that says it; 0 for `waiting` and `progress`, which are not in a placement.
    revision: int
    at: Timestamp
    node: str | None = None
    #: Of what a placement says only.
    gpu_limit: GpuLimit | None = None
    phase: Phase | None = None
    outcome: Outcome | None = None
    #: Code of the first reason, for `waiting`.
    reason: Reason | None = None


class PlacementsSince(Message):
    """job -> scheduler: what became of these attempts (reconciler)."""

    runs: tuple[str, ...] = Field(max_length=100)


class PlacementEvents(Message):
    """For each asked run that has a placement: the lifecycle events it would publish, in order.

    Runs whose events do not fit into one message are left out: ask for them again.
    """

    items: tuple[Lifecycle, ...]


class LogChunk(Message):
    """agent -> edge, `log.<node_id>.<run_id>`: `offset` counts bytes from the run's start; `text` may end anywhere."""

    run_id: str
    offset: int
    #: Bytes of the log that `text` stands for: its own length differs where they are not UTF-8.
    size: int = 0
    text: str


class NodeEvent(Message):
    """Data of `node.<event>.<node_id>`."""

    id: str
    state: NodeState
    at: Timestamp
