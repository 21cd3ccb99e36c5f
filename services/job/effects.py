"""Carries decisions out: the payload service is told first, then one write with its events, then the metrics."""

from collections.abc import Sequence
from datetime import datetime
from typing import assert_never

from gurney import clock, ids, telemetry
from gurney.errors import RevisionConflict
from gurney.model.event import Event as Outgoing
from gurney.model.event import event_of
from gurney.model.job import CancelJob, Job, JobEvent, JobState, PlacementRequest
from gurney.model.payload import Ended
from gurney.model.payload import EndPayloads as End
from gurney.service import Service
from gurney.subjects import CANCEL, JOB_EVENT, PAYLOAD_END
from services.job import repository
from services.job.events import Announce, Effect, EndPayloads, Event, TellScheduler
from services.job.machine import decide
from services.job.repository import JOBS, Seen

#: Events that may happen again within one attempt: their ids are made up, the others' are derived.
REPEATED = frozenset({"waiting", "progress"})

_log = telemetry.log("job")


class Effects:
    """What the job service does with a decision."""

    def __init__(self, service: Service) -> None:
        self._bus = service.bus
        self._store = service.store
        self._attempts = service.settings.attempts

    async def happened(self, job_id: str, event: Event, seen: Seen = repository.exists) -> Job:
        """Fold an event into a job: read, decide, carry out; again when somebody was quicker.

        Raises `NotFound` where `seen` says that there is no such job, and what `decide` raises.
        """
        answers: dict[End, Ended] = {}
        while True:
            job = await repository.get(self._store, job_id, seen)
            after, effects = decide(job, event, clock.now(), attempts=self._attempts)
            if after is job:
                return job
            try:
                with telemetry.joined("change job", job.traceparent, service="job", about=job.id):
                    return await self.carry_out(job, after, effects, answers)
            except RevisionConflict:
                continue

    async def carry_out(
        self, before: Job | None, after: Job, effects: Sequence[Effect], answers: dict[End, Ended] | None = None
    ) -> Job:
        """Store a job with what follows; raises `RevisionConflict`, and then nothing is stored.

        A crash before the write repeats the questions, which are idempotent. `answers`: what was asked already.
        """
        answers = {} if answers is None else answers
        events: list[Outgoing] = []
        for effect in effects:
            match effect:
                case EndPayloads():
                    after = await self._end_payloads(after, effect, answers)
                case Announce():
                    events.append(announcement(after, effect))
                case TellScheduler():
                    events.append(_cancellation(after, effect))
                case _:
                    assert_never(effect)
        if before is None:
            await self._store.insert(JOBS, after, *events)
            _log.debug("job accepted", job=after.id, map=after.map.id)
        else:
            after = await self._store.replace(JOBS, after.but(revision=before.revision + 1), *events)
            _measure(before, after)
            _note(before, after)
        return after

    async def _end_payloads(self, job: Job, effect: EndPayloads, answers: dict[End, Ended]) -> Job:
        question = End(
            job=job.id,
            payload=job.payload,
            run=ids.run_id(job.id, job.attempt) if effect.keep else None,
            partial=effect.partial,
            project=job.project,
            created_by=job.created_by,
        )
        if question not in answers:
            answers[question] = await self._bus.request(PAYLOAD_END, question)
        ended = answers[question]
        return job.but(results=ended.results, counts=job.counts.but(files=ended.files, bytes=ended.bytes))


def announcement(job: Job, told: Announce) -> Outgoing:
    """Return `job.<event>.<id>`."""
    data = event_data(job, told)
    return _outgoing(JOB_EVENT.of(event=told.event, job_id=job.id), data, data.event_id, told.at)


def event_data(job: Job, told: Announce) -> JobEvent:
    """Return what an event says of the job; the same document and event give the same, save for `REPEATED`."""
    repeated = told.event in REPEATED
    return JobEvent(
        id=job.id,
        event=told.event,
        event_id=ids.new_id("evt") if repeated else ids.job_event_id(job.id, told.attempt, told.event),
        at=told.at,
        project=job.project,
        created_by=job.created_by,
        name=job.name,
        labels=job.labels,
        map=job.map,
        payload=job.payload,
        results=job.results,
        state=job.state,
        attempt=told.attempt,
        reason=told.reason or (job.reason.code if job.reason else None),
        exit_code=job.exit_code,
        node=job.node,
        phase=job.phase,
        counts=job.counts,
        created_at=job.created_at,
        scheduled_at=job.scheduled_at,
        started_at=job.started_at,
        stopped_at=job.stopped_at,
        handlers=job.handlers,
        placement=placement_request(job) if told.event == "requested" else None,
    )


def placement_request(job: Job) -> PlacementRequest:
    """Return what the scheduler needs to know of a job."""
    return PlacementRequest(
        job_id=job.id,
        attempt=job.attempt,
        project=job.project,
        created_by=job.created_by,
        priority=job.priority,
        requested_at=job.requested_at or job.created_at,
        created_at=job.created_at,
        cancel_requested_at=job.cancel_requested_at,
        avoid=job.avoid,
        request=job.request,
        traceparent=job.traceparent,
    )


def end_of(job: Job) -> JobEvent:
    """Return the event of an ended job's end, as it was published."""
    told = Announce(event=job.state.value, attempt=job.attempt, at=job.stopped_at or job.created_at)
    return event_data(job, told).but(traceparent=job.traceparent)


def _cancellation(job: Job, told: TellScheduler) -> Outgoing:
    data = CancelJob(job_id=job.id, attempt=told.attempt, at=told.at)
    return _outgoing(CANCEL.of(job_id=job.id), data, ids.job_event_id(job.id, told.attempt, "cancel"), told.at)


def _outgoing(subject: str, data: JobEvent | CancelJob, event_id: str, at: datetime) -> Outgoing:
    return event_of(subject, data, id=event_id, source="job", at=at, traceparent=telemetry.traceparent())


def _note(before: Job, after: Job) -> None:
    """Log a change of state: an end at the default level, all else at the verbose one. Codes only, no texts."""
    if after.state is before.state and after.attempt == before.attempt:
        return
    tell = _log.info if after.terminal else _log.debug
    reason = after.reason.code if after.reason else None
    run = ids.run_id(after.id, after.attempt)
    tell("job ended" if after.terminal else "job", job=after.id, run=run, state=after.state.value, reason=reason)


def _measure(before: Job, after: Job) -> None:
    if after.terminal and not before.terminal:
        telemetry.JOBS_ENDED.labels(after.state.value).inc()
    if before.state is JobState.REQUESTED and before.scheduled_at is None and after.scheduled_at:
        waited = after.scheduled_at - (before.requested_at or before.created_at)
        telemetry.QUEUE_SECONDS.observe(waited.total_seconds())
