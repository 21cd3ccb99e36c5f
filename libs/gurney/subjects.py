"""Every subject, as data: name, payload, stream, who sends, who listens. Nothing is sent on a subject that is not here.

Operations are request-reply on `svc.<service>.<name>` (NATS services protocol); the other subjects are streams' or KV.
`docs/subjects.md` and the AsyncAPI document are generated from this table.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

from gurney.model import handler as h
from gurney.model import job as j
from gurney.model import map as m
from gurney.model import payload as p
from gurney.model import run as r
from gurney.model.base import Message
from gurney.model.common import Digests, Empty, Health, Page, Ref, Rename

#: The one service of which each host has its own, with a name of its own: its node.
AGENT = "agent"

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)


@dataclass(frozen=True)
class Operation(Generic[Q, R]):
    """A question that one service answers."""

    service: str
    name: str
    request: type[Q]
    reply: type[R]
    #: Services that ask it.
    askers: tuple[str, ...]
    #: Whether the answer is a span of its own, beside the one in which it is asked for: not where it is a quick look.
    traced: bool = True

    @property
    def subject(self) -> str:
        return f"svc.{self.service}.{self.name}"

    def asked_by(self, node: str) -> str:
        """Return the subject on which the agent of a node asks: its own, so that it cannot ask as another."""
        return f"{self.subject}.{node}"


@dataclass(frozen=True)
class Subject:
    """A subject of a stream. Tokens in braces are filled in; the last is the id."""

    template: str
    payload: type[Message]
    stream: str
    publisher: str
    consumers: tuple[str, ...]
    #: Services that hear it as it happens, beside or without a consumer.
    live: tuple[str, ...] = ()

    def of(self, **tokens: str) -> str:
        return self.template.format(**tokens)


@dataclass(frozen=True)
class Notice:
    """What a service tells its own replicas: that something which they remember has changed. No stream keeps it."""

    service: str
    name: str

    @property
    def subject(self) -> str:
        return f"peer.{self.service}.{self.name}"


# --- operations ---------------------------------------------------------------------------------------------------

MAP_HEALTH = Operation("map", "health", Empty, Health, ("edge",), traced=False)
PAYLOAD_HEALTH = Operation("payload", "health", Empty, Health, ("edge",), traced=False)
JOB_HEALTH = Operation("job", "health", Empty, Health, ("edge",), traced=False)
SCHEDULER_HEALTH = Operation("scheduler", "health", Empty, Health, ("edge",), traced=False)
NOTIFIER_HEALTH = Operation("notifier", "health", Empty, Health, ("edge",), traced=False)

MAP_REGISTER = Operation("map", "register", m.MapRegister, m.Map, ("edge",))
MAP_GET = Operation("map", "get", Ref, m.Map, ("edge", "job", "notifier"))
MAP_LIST = Operation("map", "list", m.MapList, Page[m.Map], ("edge",))
MAP_RENAME = Operation("map", "rename", Rename, m.Map, ("edge",))
MAP_APPROVE = Operation("map", "approve", Ref, m.Map, ("edge",))
MAP_UNREGISTER = Operation("map", "unregister", Ref, Empty, ("edge",))
MAP_ALIVE = Operation("map", "alive", m.MapRefs, m.MapsAlive, ("payload",))
MAP_NEEDED = Operation("map", "needed", Digests, Digests, ("agent",), traced=False)

PAYLOAD_CREATE = Operation("payload", "create", p.PayloadCreate, p.Payload, ("edge",))
PAYLOAD_OPEN = Operation("payload", "open", Ref, p.Payload, ("edge",))
PAYLOAD_DISCARD = Operation("payload", "discard", Ref, Empty, ("edge",))
PAYLOAD_GET = Operation("payload", "get", Ref, p.Payload, ("edge", "job", "map"))
PAYLOAD_LIST = Operation("payload", "list", p.PayloadList, Page[p.Payload], ("edge",))
PAYLOAD_RENAME = Operation("payload", "rename", Rename, p.Payload, ("edge",))
PAYLOAD_DELETE = Operation("payload", "delete", Ref, Empty, ("edge",))
PAYLOAD_FILES = Operation("payload", "files", p.FileList, Page[p.FileView], ("edge", "agent", "map"), traced=False)
PAYLOAD_SIGN = Operation("payload", "sign", p.SignFiles, p.SignedFiles, ("edge", "agent"))
PAYLOAD_BEGIN = Operation("payload", "begin", p.BeginUploads, p.BegunUploads, ("edge", "agent"))
PAYLOAD_URLS = Operation("payload", "urls", p.SignUpload, p.SignedUpload, ("edge", "agent"))
PAYLOAD_COMMIT = Operation("payload", "commit", p.CommitUploads, p.Committed, ("edge", "agent"))
PAYLOAD_ABANDON = Operation("payload", "abandon", p.AbandonUploads, Empty, ("edge", "agent"))
PAYLOAD_REMOVE = Operation("payload", "remove", p.RemoveFile, Empty, ("edge",))
PAYLOAD_LOG = Operation("payload", "log", p.LogRef, p.SignedFile, ("edge",))
PAYLOAD_CLAIM = Operation("payload", "claim", p.ClaimInput, p.Payload, ("job", "map"))
PAYLOAD_RESTORE = Operation("payload", "restore", p.RestoreClaims, Empty, ("job",))
PAYLOAD_RELEASE = Operation("payload", "release", p.ReleaseClaim, Empty, ("job", "map"))
PAYLOAD_END = Operation("payload", "end", p.EndPayloads, p.Ended, ("job",))
PAYLOAD_FINALIZE = Operation("payload", "finalize", p.FinalizeInput, Empty, ("job",))
PAYLOAD_DROP = Operation("payload", "drop", p.DropJob, Empty, ("job",))

JOB_CREATE = Operation("job", "create", j.JobCreate, j.Job, ("edge",))
JOB_GET = Operation("job", "get", j.JobGet, j.Job, ("edge", "scheduler"), traced=False)
JOB_LIST = Operation("job", "list", j.JobList, Page[j.Job], ("edge",))
JOB_CANCEL = Operation("job", "cancel", j.JobGet, j.Job, ("edge",))
JOB_AWAIT = Operation("job", "await", j.JobGet, j.Job, ("edge",), traced=False)
JOB_FINALIZE = Operation("job", "finalize", j.JobGet, j.Job, ("edge",))
JOB_DELETE = Operation("job", "delete", j.JobGet, Empty, ("edge",))
JOB_LIVE = Operation("job", "live", j.MapJobs, j.LiveJobs, ("map",))
JOB_ALIVE = Operation("job", "alive", j.JobRefs, j.JobsAlive, ("payload", "scheduler"))
JOB_NEEDED = Operation("job", "needed", Digests, Digests, ("map",), traced=False)
JOB_OWED = Operation("job", "owed", j.JobOwed, j.OwedJobs, ("scheduler", "notifier"))
JOB_NOTIFIED = Operation("job", "notified", j.JobRefs, Empty, ("notifier",))

SCHEDULER_ADMIT = Operation("scheduler", "admit", r.Admit, r.Admitted, ("job",), traced=False)
SCHEDULER_RELEASE = Operation("scheduler", "release", r.Release, Empty, ("job",))
SCHEDULER_CONFIRM = Operation("scheduler", "confirm", r.Confirm, r.Confirmed, ("agent",))
SCHEDULER_ENDED = Operation("scheduler", "ended", r.RunEnded, Empty, ("agent",))
SCHEDULER_EXPLAIN = Operation("scheduler", "explain", r.Explain, r.Explained, ("edge",))
SCHEDULER_INSPECT = Operation("scheduler", "inspect", m.InspectMap, m.InspectAccepted, ("map",))
SCHEDULER_PLACEMENTS = Operation("scheduler", "placements", r.PlacementsSince, r.PlacementEvents, ("job",))
SCHEDULER_NODES = Operation("scheduler", "nodes", r.NodeList, Page[r.Node], ("edge",))
SCHEDULER_NODE = Operation("scheduler", "node", Ref, r.Node, ("edge",))
SCHEDULER_DRAIN = Operation("scheduler", "drain", Ref, r.Node, ("edge",))
SCHEDULER_RESUME = Operation("scheduler", "resume", Ref, r.Node, ("edge",))

HANDLER_CREATE = Operation("notifier", "create", h.HandlerCreate, h.Handler, ("edge",))
HANDLER_GET = Operation("notifier", "get", Ref, h.Handler, ("edge",))
HANDLER_LIST = Operation("notifier", "list", h.HandlerList, Page[h.Handler], ("edge",))
HANDLER_PATCH = Operation("notifier", "patch", h.HandlerPatch, h.Handler, ("edge",))
HANDLER_DELETE = Operation("notifier", "delete", Ref, Empty, ("edge",))
HANDLER_TEST = Operation("notifier", "test", Ref, h.Delivery, ("edge",))
HANDLER_DELIVERIES = Operation("notifier", "deliveries", h.DeliveryList, Page[h.Delivery], ("edge",))
HANDLER_EXIST = Operation("notifier", "exist", h.HandlersExist, Empty, ("job",))

OPERATIONS: tuple[Operation[Message, Message], ...] = tuple(
    value for value in dict(globals()).values() if isinstance(value, Operation)
)

#: How the edge asks each service for its health.
HEALTH = {each.service: each for each in (MAP_HEALTH, PAYLOAD_HEALTH, JOB_HEALTH, SCHEDULER_HEALTH, NOTIFIER_HEALTH)}

# --- notices ------------------------------------------------------------------------------------------------------

EDGE_TOKENS = Notice("edge", "tokens")
NOTIFIER_HANDLERS = Notice("notifier", "handlers")

NOTICES: tuple[Notice, ...] = tuple(value for value in dict(globals()).values() if isinstance(value, Notice))

# --- streams ------------------------------------------------------------------------------------------------------

JOB_EVENT = Subject(
    "job.{event}.{job_id}", j.JobEvent, "EVENTS", "job", ("scheduler", "notifier", "edge"), live=("edge",)
)
MAP_EVENT = Subject("map.{event}.{map_id}", m.MapEvent, "EVENTS", "map", ("edge",))
PAYLOAD_EVENT = Subject("payload.{event}.{payload_id}", p.PayloadEvent, "EVENTS", "payload", ("edge",))
NODE_EVENT = Subject("node.{event}.{node_id}", r.NodeEvent, "EVENTS", "scheduler", ("edge",))
LIFECYCLE = Subject("lifecycle.{event}.{job_id}", r.Lifecycle, "LIFECYCLE", "scheduler", ("job",))
CANCEL = Subject("cancel.{job_id}", j.CancelJob, "LIFECYCLE", "job", ("scheduler",))
RUN_START = Subject("run.{node_id}.start.{run_id}", r.StartRun, "RUNS", "scheduler", ("agent",))
RUN_STOP = Subject("run.{node_id}.stop.{run_id}", r.StopRun, "RUNS", "scheduler", ("agent",))
RUN_INSPECT = Subject("run.{node_id}.inspect.{inspection_id}", m.InspectMap, "RUNS", "scheduler", ("agent",))
RUN_REPORT = Subject("report.run.{node_id}.{phase}.{run_id}", r.RunReport, "REPORTS", "agent", ("scheduler",))
INSPECT_REPORT = Subject(
    "report.inspect.{node_id}.{phase}.{inspection_id}", m.InspectReport, "REPORTS", "agent", ("map",)
)
LOG_CHUNK = Subject("log.{node_id}.{run_id}", r.LogChunk, "LOGS", "agent", ("edge",))
HEARTBEAT = Subject(
    "$KV.heartbeats.{node_id}", r.Heartbeat, "KV_heartbeats", "agent", ("scheduler",), live=("scheduler",)
)

SUBJECTS: tuple[Subject, ...] = tuple(value for value in dict(globals()).values() if isinstance(value, Subject))

#: Events of a job, in the order of a life; `job.<event>.<job_id>`.
JOB_EVENTS = (
    "requested",
    "scheduled",
    "started",
    "waiting",
    "progress",
    "retrying",
    "succeeded",
    "failed",
    "canceled",
    "finalized",
    "deleted",
)
MAP_EVENTS = ("registered", "ready", "invalid", "named", "approved", "unregistered")
PAYLOAD_EVENTS = ("created", "changed", "deleted")
NODE_EVENTS = ("joined", "drained", "resumed", "lost", "left")


def shape_of(subject: str) -> tuple[str, str]:
    """Return what kind of message a subject is for, and its template: `job.requested`, `job.{event}.{job_id}`."""
    return _shape_of(subject.rpartition(".")[0])


@lru_cache(1024)
def _shape_of(before_id: str) -> tuple[str, str]:
    """Ids of nodes are no part of a kind; what stands last is an id always."""
    given = [*before_id.split("."), "*"]
    for each in SUBJECTS:
        tokens = each.template.split(".")
        if len(tokens) == len(given) and all(a == b or a[0] == "{" for a, b in zip(tokens, given, strict=True)):
            named = [b for a, b in zip(tokens, given, strict=True) if not a.endswith("_id}")]
            return ".".join(named), each.template
    return given[0], f"{given[0]}.>"
