"""What of the stream EVENTS a client may see, and how he gets it. Pure."""

import json
import re
from dataclasses import dataclass

from gurney import clock, ids
from gurney.errors import Invalid
from gurney.feed import Extent, Item
from gurney.model.access import Caller, Role
from gurney.model.job import Job, JobEvent
from gurney.subjects import JOB_EVENTS, MAP_EVENTS, NODE_EVENTS, PAYLOAD_EVENTS
from services.edge import sse

STREAM = "EVENTS"
#: Comes before events that do not follow on what the client has seen: he reads the state of things again.
RESET = "reset"

TYPES = frozenset(
    f"{noun}.{event}"
    for noun, events in (
        ("job", JOB_EVENTS),
        ("map", MAP_EVENTS),
        ("payload", PAYLOAD_EVENTS),
        ("node", NODE_EVENTS),
    )
    for event in events
)
#: Nothing of interest follows these in a job's life.
LAST = frozenset({"job.succeeded", "job.failed", "job.canceled", "job.deleted"})

_ID = re.compile(r"(\d{1,20})-(\d{1,20})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Start:
    """Where a client's events begin: after this sequence; `reset` tells why they do not follow on what he has seen."""

    after: int
    reset: str | None = None


def start(last_event_id: str | None, extent: Extent, *, afresh: int) -> Start:
    """Return where to begin: where the client ended if that can be, else at `afresh`."""
    if not last_event_id:
        return Start(afresh)
    match = _ID.fullmatch(last_event_id.strip())
    if match is None or int(match[1]) != extent.epoch:
        return Start(afresh, "foreign_id")
    sequence = int(match[2])
    return Start(sequence) if extent.resumes(sequence) else Start(afresh, "too_old")


def event_id(epoch: int, sequence: int) -> str:
    return f"{epoch}-{sequence}"


def reset(reason: str, epoch: int, sequence: int) -> bytes:
    """Return the event that tells of a break; its id is what the following events follow on."""
    return sse.event(RESET, {"reason": reason}, event_id(epoch, sequence))


def type_of(subject: str) -> str:
    """Return the `ce-type`."""
    return ".".join(subject.split(".", 2)[:2])


def types(text: str) -> frozenset[str]:
    """Return the types that a client asks for; raises `Invalid`."""
    asked = frozenset(filter(None, (each.strip() for each in text.split(","))))
    if unknown := sorted(asked - TYPES):
        raise Invalid.field("types", f"{unknown[0][:80]!r} is no type of event")
    return asked


def rendered(item: Item, epoch: int, caller: Caller) -> bytes | None:
    """Return the event as this caller sees it, None where he does not."""
    kind = type_of(item.subject)
    data = item.data
    if caller.role is not Role.ADMINISTRATOR or kind == "job.requested":
        body = json.loads(data)
        if not visible(caller, kind.partition(".")[0], body):
            return None
        if body.pop("placement", None) is not None:  # the scheduler's
            data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    return sse.event(kind, data, event_id(epoch, item.sequence))


def visible(caller: Caller, noun: str, body: dict[str, object]) -> bool:
    """Tell whether the caller sees what the event tells of: MAPs are for everybody in their project."""
    if caller.role is Role.ADMINISTRATOR:
        return True
    if noun == "node":
        return caller.role is Role.DEVELOPER
    if body.get("project") != caller.project:
        return False
    return noun == "map" or caller.role is Role.DEVELOPER or body.get("created_by") == caller.subject


def last_event(job: Job) -> bytes:
    """Return the last event of a job that has ended, made of its document, as the stream has it no more."""
    data = JobEvent(
        id=job.id,
        event=job.state,
        event_id=ids.job_event_id(job.id, job.attempt, job.state),
        at=job.stopped_at or clock.now(),
        reason=job.reason.code if job.reason else None,
        **{name: getattr(job, name) for name in _SAME},
    )
    return sse.event(f"job.{job.state}", data.encode())


#: Fields that job and event share.
_SAME = (
    "project", "created_by", "name", "labels", "map", "payload", "results", "state", "attempt", "exit_code", "node",
    "phase", "counts", "created_at", "scheduled_at", "started_at", "stopped_at", "handlers",
)  # fmt: skip
