"""Tells the payload service what finalized and deleted jobs owe it, and ends the document of a deleted job."""

from gurney import clock
from gurney.documents.port import Write
from gurney.errors import RevisionConflict
from gurney.model.job import Job
from gurney.model.payload import DropJob, FinalizeInput
from gurney.service import Service
from gurney.subjects import PAYLOAD_DROP, PAYLOAD_FINALIZE
from services.job.effects import announcement
from services.job.events import Announce
from services.job.repository import JOBS


class Settle:
    """Brings one job to where it owes nothing; may be called again at any time."""

    def __init__(self, service: Service) -> None:
        self._bus = service.bus
        self._store = service.store

    async def __call__(self, job: Job) -> Job:
        match job.owes:
            case "finalize":
                await self._bus.request(PAYLOAD_FINALIZE, FinalizeInput(job=job.id, payload=job.payload))
                return await self(await self._paid(job))
            case "discard":
                await self._bus.request(PAYLOAD_FINALIZE, FinalizeInput(job=job.id, payload=job.payload))
                await self._bus.request(PAYLOAD_DROP, DropJob(job=job.id, wait=True))
                return await self(await self._paid(job))
            case "drop":
                await self._bus.request(PAYLOAD_DROP, DropJob(job=job.id))
                await self._remove(job)
                return job
            case None:
                return job

    async def _paid(self, job: Job) -> Job:
        def change(now: Job) -> tuple[Job, tuple[()]] | None:
            if now.owes not in {"finalize", "discard"}:
                return None
            results = None if now.owes == "discard" else now.results
            return now.next(owes="drop" if now.deleting else None, results=results), ()

        return await self._store.update(JOBS, job.id, change)

    async def _remove(self, job: Job) -> None:
        """Remove the document and publish `deleted`, as one atom."""
        while found := await self._store.documents.get(JOBS, job.id):
            event = announcement(found, Announce(event="deleted", attempt=found.attempt, at=clock.now()))
            (fault,) = await self._store.write(Write(JOBS, found.id, found.revision, None, (event,)))
            if fault is None:
                return
            if not isinstance(fault, RevisionConflict):
                raise fault
