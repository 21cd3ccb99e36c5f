"""The states of a job, and the one place that changes them. Pure.

requested -> scheduled -> running -> succeeded | failed | canceled; an attempt that fails and is tried again goes back
to requested. Terminal states are final. Events of the scheduler are in order by (attempt, stage, placement revision),
where the stages are scheduled, started, ended: a placement goes through them once. An event that is not newer than
what was folded only fills a missing time stamp.

A cancel request ends a job by what its placement says: a success or a final failure that was recorded first stays, and
an attempt that would have been tried again is not, so that job is canceled. The output of a canceled run is not kept,
its log is. A transient job that does not succeed is finalized by its end: nobody waits for data of it.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal, assert_never

from gurney.errors import Conflict, JobLive, JobTerminal
from gurney.model.base import Reason
from gurney.model.job import LIVE, TERMINAL, Job, JobState, Phase
from services.job import life, outcome, retry
from services.job.events import (
    Announce,
    Canceled,
    CancelRequested,
    Delete,
    Effect,
    Ending,
    EndPayloads,
    Event,
    Failed,
    Finalize,
    Lost,
    Progress,
    Scheduled,
    Started,
    Succeeded,
    TellScheduler,
    Told,
    Waiting,
)

Decision = tuple[Job, tuple[Effect, ...]]

INITIAL = JobState.REQUESTED
_R, _S, _N = JobState.REQUESTED, JobState.SCHEDULED, JobState.RUNNING
_OK, _F, _C = JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED
_LIVE = tuple(state for state in JobState if state in LIVE)
_ENDED = tuple(state for state in JobState if state in TERMINAL)
_SAME: tuple[JobState, ...] = ()

#: (state, event) -> the states that may follow; empty: it stays. What is not here is illegal.
TRANSITIONS: Mapping[tuple[JobState, type[Event]], tuple[JobState, ...]] = {
    **{(state, event): _SAME for state in JobState for event in (Waiting, Progress)},
    (_R, Scheduled): (_S,),
    **{(state, Scheduled): _SAME for state in JobState if state is not _R},
    **{(state, Started): (_N,) for state in (_R, _S)},
    **{(state, Started): _SAME for state in (_N, *_ENDED)},
    **{(state, Succeeded): (_OK,) for state in _LIVE},
    **{(state, Failed): (_F, _R, _C) for state in _LIVE},
    **{(state, Lost): (_R, _F, _C) for state in _LIVE},
    **{(state, Canceled): (_C,) for state in _LIVE},
    **{(state, event): _SAME for state in _ENDED for event in (Succeeded, Failed, Lost, Canceled)},
    **{(state, CancelRequested): _SAME for state in (*_LIVE, _C)},
    **{(state, event): _SAME for state in _ENDED for event in (Finalize, Delete)},
}


class IllegalEvent(Conflict):
    """An event that this job cannot have had. Nothing was changed."""

    def __init__(self, job: Job, event: Event) -> None:
        so_far = ", ".join(f"{item.event}({item.attempt})" for item in job.story[-8:])
        name = f"{type(event).__name__}({event.attempt})" if isinstance(event, Told) else type(event).__name__
        super().__init__(f"{job.id}, {job.state} at attempt {job.attempt}, cannot have {name}; so far: {so_far}")


def table() -> list[tuple[str, str, str]]:
    """Return `TRANSITIONS` as rows of text (state, event, states that may follow), for people."""
    return [
        (state.value, event.__name__, ", ".join(following) or state.value)
        for (state, event), following in TRANSITIONS.items()
    ]


def begin(job: Job, cause: str | None) -> Decision:
    """Return a new job as it is first stored."""
    job = life.told(job, "requested", job.created_at, job.attempt, cause=cause)
    return job, (Announce(event="requested", attempt=job.attempt, at=job.created_at),)


def decide(  # noqa: PLR0911  # one for each event
    job: Job, event: Event, now: datetime, *, attempts: int
) -> Decision:
    """Return what becomes of the job and what follows; the same object where nothing changes.

    `attempts` is the limit for faults of the infrastructure. Raises `JobLive`, `JobTerminal` or `IllegalEvent`.
    """
    _check(job, event)
    if isinstance(event, Told) and event.attempt < job.attempt:  # of an attempt that is over
        return job, ()
    match event:
        case Waiting():
            return _on_waiting(job, event)
        case Progress():
            return _on_progress(job, event)
        case Scheduled():
            return _on_scheduled(job, event)
        case Started():
            return _on_started(job, event)
        case Succeeded() | Failed() | Canceled() | Lost():
            return _on_ended(job, event, attempts)
        case CancelRequested():
            return _on_cancel(job, event, now)
        case Finalize():
            return _on_finalize(job, event, now)
        case Delete():
            return _on_delete(job)
        case _:
            assert_never(event)


def _check(job: Job, event: Event) -> None:
    if isinstance(event, Told) and event.attempt > job.attempt:
        raise IllegalEvent(job, event)
    if (job.state, type(event)) in TRANSITIONS:
        return
    match event:
        case Finalize() | Delete():
            raise JobLive(f"{job.id} is {job.state}: cancel it or wait until it has ended")
        case CancelRequested():
            raise JobTerminal(f"{job.id} has ended: {job.state}")
        case _:
            raise IllegalEvent(job, event)


# --- what clients ask ---


def _on_cancel(job: Job, event: CancelRequested, now: datetime) -> Decision:
    if job.terminal or job.cancel_requested_at:
        return job, ()
    at = max(now, job.created_at)
    job = life.told(
        job.but(cancel_requested_at=at), "cancel requested", at, job.attempt, cause=event.cause, message=event.by
    )
    return job, (TellScheduler(attempt=job.attempt, at=at),)


def _on_finalize(job: Job, event: Finalize, now: datetime) -> Decision:
    if job.finalized_at:
        return job, ()
    at = life.never_before(job, now)
    owed: Literal["finalize", "discard"] = "discard" if job.transient else "finalize"
    job = job.but(finalized_at=at, owes=job.owes or owed, awaited_until=None)
    job = life.told(job, "finalized", at, job.attempt, cause=event.cause, message=event.by)
    return job, (Announce(event="finalized", attempt=job.attempt, at=at),)


def _on_delete(job: Job) -> Decision:
    if job.deleting:
        return job, ()
    return job.but(deleting=True, owes=job.owes or "drop"), ()  # what is owed for a finalize comes first


# --- what the scheduler tells ---


def _on_waiting(job: Job, event: Waiting) -> Decision:
    if job.state is not _R or life.knows(job, event):
        return job, ()
    at, reason = life.never_before(job, event.at), event.reason
    job = life.told(job, "waiting", at, job.attempt, cause=event.cause, message=life.text(reason))
    return job, (Announce(event="waiting", attempt=job.attempt, at=at, reason=reason.code if reason else None),)


def _on_progress(job: Job, event: Progress) -> Decision:
    if job.state not in {_S, _N} or event.phase is None or not life.further(job.phase, event.phase):
        return job, ()
    at = life.never_before(job, event.at)
    news = job.phase is None or job.phase.name != event.phase.name
    job = job.but(phase=event.phase)
    if news:  # counts alone are no story
        job = life.told(job, event.phase.name, at, job.attempt, node=job.node, cause=event.cause)
    return job, (Announce(event="progress", attempt=job.attempt, at=at),)


def _on_scheduled(job: Job, event: Scheduled) -> Decision:
    if job.state is _S and event.revision > job.folded.revision and event.node != job.node:
        return life.folded(life.told_by(_placed(job, event), "scheduled", event.at, event), event), ()
    if job.state is not _R:
        return life.fill(job, "scheduled_at", event), ()
    at = life.never_before(job, event.at)
    job = _placed(job, event).but(state=_S, scheduled_at=at, timings=outcome.queued(job, at))
    job = life.folded(life.told_by(job, "scheduled", at, event), event)
    return job, (Announce(event="scheduled", attempt=job.attempt, at=at),)


def _placed(job: Job, event: Scheduled | Started) -> Job:
    return job.but(node=event.node or job.node, gpu_limit=event.gpu_limit or job.gpu_limit)


def _on_started(job: Job, event: Started) -> Decision:
    if job.state not in {_R, _S}:
        return life.fill(job, "started_at", event), ()
    at = life.never_before(job, event.at)
    if job.scheduled_at is None:  # that message is still on its way
        job = job.but(timings=outcome.queued(job, at))
    phase = Phase(name="running") if life.further(job.phase, Phase(name="running")) else job.phase
    job = _placed(job, event).but(state=_N, started_at=at, phase=phase)
    job = life.folded(life.told_by(job, "started", at, event), event)
    return job, (Announce(event="started", attempt=job.attempt, at=at),)


def _on_ended(job: Job, event: Ending, attempts: int) -> Decision:
    if job.terminal:
        return job, ()
    before, job = job, life.stamped_start(job, event)
    at = life.never_before(job, event.at)
    if job.scheduled_at is None and job.started_at is None:
        job = job.but(timings=outcome.queued(job, at))
    began: tuple[Effect, ...] = ()
    if job.started_at and not before.started_at:
        began = (Announce(event="started", attempt=job.attempt, at=job.started_at),)
    job = life.folded(outcome.taken_over(job, event.outcome).but(node=event.node or job.node), event)
    job, effects = _ended(job, event, at, attempts)
    return job, (*began, *effects)


def _ended(job: Job, event: Ending, at: datetime, attempts: int) -> Decision:
    match event:
        case Succeeded():
            return _finish(job, _OK, event, at)
        case Canceled():
            return _finish(job, _C, event, at, outcome.reason_of("canceled", event.outcome, event.reason))
        case Failed():
            return _on_failure(job, event, at, outcome.reason_of("failed", event.outcome, event.reason), attempts)
        case Lost():
            return _on_failure(job, event, at, outcome.reason_of("lost", event.outcome, event.reason), attempts)
        case _:
            assert_never(event)


def _on_failure(job: Job, event: Ending, at: datetime, reason: Reason, attempts: int) -> Decision:
    again = retry.again(job, reason.code, attempts)
    job = job.but(failures=retry.counted(job.failures, reason.code))
    if again and job.cancel_requested_at:  # the cancel is why it ends
        message = f"attempt {job.attempt} failed ({reason.code}) and was not tried again"
        return _finish(job, _C, event, at, Reason.of("canceled", message))
    return _retry(job, event, at, reason) if again else _finish(job, _F, event, at, reason)


def _retry(job: Job, event: Ending, at: datetime, reason: Reason) -> Decision:
    ended = job.attempt
    lost = (job.node,) if job.node and reason.code in retry.INFRASTRUCTURE and job.node not in job.avoid else ()
    job = life.told_by(job, "retrying", at, event, life.text(reason))
    job = job.but(
        state=_R,
        attempt=ended + 1,
        requested_at=at,
        avoid=(*job.avoid, *lost),
        phase=None,
        node=None,
        gpu_limit=None,
        exit_code=None,
        scheduled_at=None,
        started_at=None,
    )
    job = life.told(job, "requested", at, job.attempt, cause=event.cause)
    return job, (
        Announce(event="retrying", attempt=ended, at=at, reason=reason.code),
        Announce(event="requested", attempt=job.attempt, at=at),
    )


def _finish(job: Job, state: JobState, event: Ending, at: datetime, reason: Reason | None = None) -> Decision:
    job = life.told_by(job, state.value, at, event, life.text(reason))
    job = job.but(state=state, stopped_at=at, reason=reason, phase=None, timings=outcome.closed(job, at))
    output = event.outcome is not None and event.outcome.output
    of_use = state is _OK or (state is _F and not job.transient)
    keep = output and of_use
    effects = (
        EndPayloads(keep=keep, partial=keep and state is _F),
        Announce(event=state.value, attempt=job.attempt, at=at),
    )
    return (job, effects) if of_use or not job.transient else _let_go(job, at, effects)


def _let_go(job: Job, at: datetime, effects: tuple[Effect, ...]) -> Decision:
    """Let the data of a transient job go with its end: nobody gets anything of them."""
    job = life.told(job.but(finalized_at=at, owes="discard", awaited_until=None), "finalized", at, job.attempt)
    return job, (*effects, Announce(event="finalized", attempt=job.attempt, at=at))
