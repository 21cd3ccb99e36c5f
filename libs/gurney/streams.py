"""Streams and durable consumers, as data.

Each stream has one declaring service, which declares it again whenever it is gone.
"""

from collections.abc import Callable
from dataclasses import dataclass

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from gurney.settings import MIB, Settings


@dataclass(frozen=True)
class Stream:
    name: str
    declarer: str
    config: Callable[[Settings], StreamConfig]


@dataclass(frozen=True)
class Consumer:
    """A durable pull consumer. Consumers of a work queue never overlap: one filter per lane."""

    stream: str
    durable: str
    filter: str
    service: str
    #: Seconds after which an unacknowledged message comes again.
    ack_wait: float = 30.0
    #: Messages in work at once.
    in_flight: int = 256
    #: Kinds of messages whose consumption is a span; None: all. Of others, a trace tells what comes of them.
    traced: tuple[str, ...] | None = None
    #: Who makes it, where that is not who consumes.
    made_by: str | None = None

    @property
    def maker(self) -> str:
        return self.made_by or self.service


@dataclass(frozen=True)
class Reader:
    """A service that looks into a stream and takes nothing out of it."""

    stream: str
    service: str
    #: Reads on as the stream grows, by consumers of its own that nobody names.
    follows: bool = False
    #: An agent: reads the last message on its own node's subjects, and nothing else.
    own: bool = False


def _events(settings: Settings) -> StreamConfig:
    return StreamConfig(
        name="EVENTS",
        subjects=["job.*.*", "map.*.*", "payload.*.*", "node.*.*"],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        max_msgs=settings.events_max_messages or -1,
        max_bytes=settings.events_max_bytes,
        max_age=settings.events_max_age,
        duplicate_window=min(120, settings.events_max_age),
    )


def _queue(name: str, subjects: list[str], max_age: float = 0) -> Callable[[Settings], StreamConfig]:
    def config(_: Settings) -> StreamConfig:
        return StreamConfig(
            name=name,
            subjects=subjects,
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.FILE,
            max_age=max_age,
            duplicate_window=min(120, max_age or 120),
        )

    return config


def _logs(_: Settings) -> StreamConfig:
    return StreamConfig(
        name="LOGS",
        subjects=["log.*.*"],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        max_bytes=64 * MIB,
        max_age=3600,
        max_msgs_per_subject=4096,
        duplicate_window=1,
    )


def _heartbeats(settings: Settings) -> StreamConfig:
    return StreamConfig(
        name="KV_heartbeats",
        subjects=["$KV.heartbeats.>"],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.MEMORY,
        max_msgs_per_subject=1,
        max_age=settings.node_lost_after,
        duplicate_window=min(1, settings.node_lost_after),
        allow_direct=True,
    )


def _dead(_: Settings) -> StreamConfig:
    return StreamConfig(
        name="DEAD", subjects=["dead.*.*"], storage=StorageType.FILE, max_msgs=10_000, max_bytes=256 * MIB
    )


STREAMS: tuple[Stream, ...] = (
    Stream("EVENTS", "job", _events),
    Stream("LIFECYCLE", "job", _queue("LIFECYCLE", ["lifecycle.*.*", "cancel.*"])),
    Stream("RUNS", "scheduler", _queue("RUNS", ["run.*.*.*"], max_age=600)),
    Stream("REPORTS", "scheduler", _queue("REPORTS", ["report.run.*.*.*", "report.inspect.*.*.*"])),
    Stream("KV_heartbeats", "scheduler", _heartbeats),
    Stream("LOGS", "edge", _logs),
    Stream("DEAD", "job", _dead),
)

JOB_LIFECYCLE = Consumer("LIFECYCLE", "job", "lifecycle.*.*", "job")
SCHEDULER_CANCEL = Consumer("LIFECYCLE", "scheduler", "cancel.*", "scheduler")
SCHEDULER_REQUESTED = Consumer("EVENTS", "scheduler", "job.requested.*", "scheduler", in_flight=1024, traced=())
SCHEDULER_REPORTS = Consumer("REPORTS", "scheduler", "report.run.*.*.*", "scheduler", traced=())
MAP_INSPECTIONS = Consumer("REPORTS", "map", "report.inspect.*.*.*", "map")
NOTIFIER_JOBS = Consumer(
    "EVENTS",
    "notifier",
    "job.*.*",
    "notifier",
    in_flight=1024,
    traced=("job.succeeded", "job.failed", "job.canceled"),
)

CONSUMERS: tuple[Consumer, ...] = tuple(value for value in dict(globals()).values() if isinstance(value, Consumer))

READERS: tuple[Reader, ...] = (
    Reader("EVENTS", "edge", follows=True),
    Reader("LOGS", "edge", follows=True),
    Reader("KV_heartbeats", "scheduler"),
    Reader("KV_heartbeats", "agent", own=True),
)


def agent_runs(node: str) -> Consumer:
    """Return the consumer of one node's commands. The scheduler creates it before the node is ready."""
    return Consumer("RUNS", f"agent-{node}", f"run.{node}.*.*", "agent", made_by="scheduler")
