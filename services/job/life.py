"""Time, order and story of a job's life: what every decision does besides its own. Pure."""

from datetime import datetime

from gurney.model.base import Reason
from gurney.model.job import Folded, Job, Phase, StoryItem
from services.job import outcome
from services.job.events import Ending, Told

#: A job's story keeps its last items.
STORY_ITEMS = 500

_PHASES = ("pulling", "staging", "running", "collecting")


def never_before(job: Job, at: datetime) -> datetime:
    """Return `at`, or the job's latest stamp where that is later: a life never goes back in time."""
    stamps = (job.created_at, job.requested_at, job.scheduled_at, job.started_at, job.stopped_at)
    return max(at, *(stamp for stamp in stamps if stamp))


def fill(job: Job, stamp: str, event: Told) -> Job:
    """Fill a stamp that is missing, between its neighbours; anything else that is old changes nothing."""
    if getattr(job, stamp) is not None:
        return job
    before = [job.requested_at or job.created_at, *([job.scheduled_at] if job.scheduled_at else [])]
    after = [each for each in (job.started_at, job.stopped_at) if each]
    at = min(max(event.at, *before), *after) if after else max(event.at, *before)
    job = told_by(job.but(**{stamp: at}), type(event).__name__.lower(), at, event)
    return job.but(story=tuple(sorted(job.story, key=lambda item: item.at)))


def stamped_start(job: Job, event: Ending) -> Job:
    """Return the job with the start that the outcome tells, where no message told of it yet."""
    if job.started_at or event.outcome is None or event.outcome.started_at is None:
        return job
    at = min(never_before(job, event.outcome.started_at), never_before(job, event.at))
    if job.scheduled_at is None:
        job = job.but(timings=outcome.queued(job, at))
    return told_by(job.but(started_at=at), "started", at, event)


def further(before: Phase | None, after: Phase) -> bool:
    """Tell whether a phase is news: phases follow each other, and their counts grow."""
    if before is None:
        return True
    if before.name == after.name:
        return (after.done or 0) > (before.done or 0) or (before.total is None and after.total is not None)
    return _rank(after) > _rank(before)


def _rank(phase: Phase) -> int:
    return _PHASES.index(phase.name) if phase.name in _PHASES else len(_PHASES)


def folded(job: Job, event: Told) -> Job:
    return job.but(folded=Folded(attempt=event.attempt, revision=max(event.revision, job.folded.revision)))


def knows(job: Job, event: Told) -> bool:
    """Tell whether this message was folded before (for those that no placement orders)."""
    return event.cause is not None and any(item.cause == event.cause for item in job.story)


def told_by(job: Job, event: str, at: datetime, by: Told, message: str | None = None) -> Job:
    return told(job, event, at, by.attempt, node=by.node or job.node, cause=by.cause, message=message)


def told(
    job: Job,
    event: str,
    at: datetime,
    attempt: int,
    *,
    node: str | None = None,
    cause: str | None = None,
    message: str | None = None,
) -> Job:
    item = StoryItem(at=at, event=event, attempt=attempt, node=node, cause=cause, message=message)
    return job.but(story=(*job.story[-(STORY_ITEMS - 1) :], item))


def text(reason: Reason | None) -> str | None:
    return f"{reason.code}: {reason.message}" if reason and reason.message else reason.code if reason else None
