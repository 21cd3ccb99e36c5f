"""What a job's document takes over from the end of an attempt: times, usage, log, all within bounds. Pure.

`timings` add up over the attempts of a job, so that `other` is the rest of its wall time.
"""

import json
from datetime import datetime
from typing import Any

from gurney.model.base import Reason, clip
from gurney.model.job import Job, LogInfo, Timings
from gurney.model.run import Outcome

METADATA_BYTES = 64 * 1024
LOG_TAIL_LINES = 100
LOG_TAIL_BYTES = 16 * 1024

#: The phases that an agent measures.
MEASURED = ("pulling", "staging", "running", "collecting")

_DEFAULT_REASONS = {"failed": "internal", "lost": "node_lost", "canceled": "canceled"}


def reason_of(ending: str, outcome: Outcome | None, reason: Reason | None) -> Reason:
    """Return why an attempt did not succeed."""
    given = (outcome.reason if outcome else None) or reason
    return Reason.of(given.code, given.message) if given else Reason(code=_DEFAULT_REASONS[ending])


def taken_over(job: Job, outcome: Outcome | None) -> Job:
    """Return the job with what its agent told of the attempt; stamps are not its matter."""
    if outcome is None:
        return job
    return job.but(
        exit_code=outcome.exit_code,
        usage=outcome.usage,
        metadata=_bounded(outcome.metadata),
        logs=_logs(job.logs, outcome.log),
        log_tail=tail(outcome.log_tail),
        timings=_added(job.timings, outcome.timings, MEASURED),
    )


def queued(job: Job, until: datetime) -> Timings:
    """Return the timings with this attempt's wait for a placement."""
    waited = seconds(job.requested_at or job.created_at, until)
    return _added(job.timings, Timings(queued=waited), ("queued",))


def closed(job: Job, at: datetime) -> Timings:
    """Return the timings of a job that stops now: `other` is what no phase explains."""
    explained = sum(getattr(job.timings, name) or 0.0 for name in ("queued", *MEASURED))
    return job.timings.but(other=round(max(0.0, seconds(job.created_at, at) - explained), 6))


def seconds(since: datetime, until: datetime) -> float:
    return max(0.0, (until - since).total_seconds())


def tail(lines: tuple[str, ...]) -> tuple[str, ...]:
    """Return the last lines that fit into a document."""
    kept: list[str] = []
    room = LOG_TAIL_BYTES
    for line in reversed(lines[-LOG_TAIL_LINES:]):
        text = clip(line, LOG_TAIL_BYTES)
        room -= len(text.encode(errors="replace")) + 1
        if room < 0 and kept:
            break
        kept.append(text)
    return tuple(reversed(kept))


def _added(before: Timings, more: Timings, names: tuple[str, ...]) -> Timings:
    sums = {
        name: round((getattr(before, name) or 0.0) + max(0.0, getattr(more, name)), 6)
        for name in names
        if getattr(more, name) is not None
    }
    return before.but(**sums)


def _bounded(value: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the value, None where it is too large for a document: it stays a file of the results."""
    if value is None or len(json.dumps(value)) > METADATA_BYTES:
        return None
    return value


def _logs(before: tuple[LogInfo, ...], log: LogInfo | None) -> tuple[LogInfo, ...]:
    if log is None:
        return before
    return (*(each for each in before if each.attempt != log.attempt), log)
