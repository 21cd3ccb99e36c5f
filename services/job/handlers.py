"""Messages of the job service: message -> event -> decide -> effects."""

from gurney import clock, ids, telemetry
from gurney.consume import Reject
from gurney.documents.port import Write
from gurney.errors import GurneyError, NotFound, RevisionConflict
from gurney.model.common import Digests, Empty, Page, Ref
from gurney.model.job import (
    Job,
    JobGet,
    JobList,
    JobOwed,
    JobRefs,
    JobsAlive,
    LiveJobs,
    MapJobs,
    OwedJobs,
)
from gurney.model.run import Lifecycle
from gurney.service import Service
from gurney.subjects import PAYLOAD_GET
from services.job import effects, events, repository
from services.job.effects import Effects
from services.job.intake import AWAITED
from services.job.machine import IllegalEvent
from services.job.repository import JOBS
from services.job.settle import Settle

_log = telemetry.log("job")


class Handlers:
    """Everything that the service is asked and told, save creation."""

    def __init__(self, service: Service, carrier: Effects, settle: Settle) -> None:
        self._service = service
        self._bus = service.bus
        self._store = service.store
        self._effects = carrier
        self._settle = settle

    # --- clients ---

    async def get(self, question: JobGet) -> Job:
        return await repository.get(self._store, question.job, repository.seen_by(question.caller))

    async def page(self, question: JobList) -> Page[Job]:
        if question.payload is not None and not ids.is_id(question.payload, "pay"):
            try:
                payload = await self._bus.request(PAYLOAD_GET, Ref(caller=question.caller, ref=question.payload))
            except NotFound:
                return Page(items=())
            question = question.but(payload=payload.id)
        return await repository.page(self._store, question)

    async def cancel(self, question: JobGet) -> Job:
        return await self._asked(question, events.CancelRequested)

    async def wait(self, question: JobGet) -> Job:
        """Note that somebody waits for a transient job; of one whose data go there is nothing to wait for."""
        await self.get(question)

        def awaited(job: Job) -> tuple[Job, tuple[()]] | None:
            return (job.next(awaited_until=clock.now() + AWAITED), ()) if job.awaited_until else None

        return await self._store.update(JOBS, question.job, awaited)

    async def finalize(self, question: JobGet) -> Job:
        job = await self._asked(question, events.Finalize)
        return await self._settled(job)

    async def delete(self, question: JobGet) -> Empty:
        await self._settled(await self._asked(question, events.Delete))
        return Empty()

    async def _asked(self, question: JobGet, kind: type[events.Request]) -> Job:
        caller = question.caller
        event = kind(cause=telemetry.current_trace_id(), by=caller.subject if caller else None)
        return await self._effects.happened(question.job, event, repository.seen_by(caller))

    async def _settled(self, job: Job) -> Job:
        """Tell the payload service now; the document says it, so what fails here is made up by the reconciler."""
        try:
            return await self._settle(job)
        except GurneyError as fault:
            _log.info("left to the reconciler", job=job.id, owes=job.owes, error=fault)
            self._service.reconcile_soon()
            return job

    # --- other services ---

    async def live(self, question: MapJobs) -> LiveJobs:
        jobs, count = await repository.live_of_map(self._store, question.map)
        return LiveJobs(jobs=tuple(jobs), count=count)

    async def alive(self, question: JobRefs) -> JobsAlive:
        found = await self._store.documents.get_many(JOBS, question.jobs)
        return JobsAlive(
            live=tuple(job.id for job in found if not job.terminal),
            ended=tuple(job.id for job in found if job.terminal),
            finalized=tuple(job.id for job in found if job.finalized_at),
        )

    async def needed(self, question: Digests) -> Digests:
        return Digests(digests=tuple(sorted(await repository.needed(self._store, question.digests))))

    async def owed(self, question: JobOwed) -> OwedJobs:
        jobs, following = await repository.owed(self._store, question)
        if question.kind == "unnotified":
            return OwedJobs(ended=tuple(effects.end_of(job) for job in jobs), next=following)
        return OwedJobs(items=tuple(effects.placement_request(job) for job in jobs), next=following)

    async def notified(self, question: JobRefs) -> Empty:
        """Mark ended jobs as notified; those that are gone need no mark."""
        waiting = set(question.jobs)
        while waiting:
            jobs = await self._store.documents.get_many(JOBS, sorted(waiting))
            writes = [Write(JOBS, job.id, job.revision, job.next(notified=True)) for job in jobs if not job.notified]
            faults = await self._store.write(*writes)
            waiting = {write.id for write, fault in zip(writes, faults, strict=True) if _changed(fault)}
        return Empty()

    # --- the scheduler's events ---

    async def lifecycle(self, subject: str, data: bytes) -> None:
        """Fold an event in. The scheduler knows jobs from their documents alone: one that is not there is deleted."""
        message = Lifecycle.decode(data)
        try:
            job = await self._effects.happened(message.job_id, events.told(message), repository.anything)
            if job.owes == "discard":
                await self._settled(job)
        except NotFound:
            _log.info("event of no job", subject=subject, attempt=message.attempt)
        except IllegalEvent as illegal:
            raise Reject(str(illegal)) from illegal


def _changed(fault: GurneyError | None) -> bool:
    """Tell whether a write lost to another one; raises any other fault."""
    if fault is None or isinstance(fault, RevisionConflict):
        return fault is not None
    raise fault
