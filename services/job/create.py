"""Accepts a job: MAP, claim on the input, room, then the document. What was taken goes back on any failure."""

import asyncio
from dataclasses import dataclass

from gurney import clock, ids, telemetry
from gurney.errors import GurneyError, KeyTaken, Unavailable
from gurney.model.access import Caller
from gurney.model.base import Idempotency
from gurney.model.common import Ref
from gurney.model.handler import HandlersExist
from gurney.model.job import Admission, Job, JobCreate
from gurney.model.map import Map
from gurney.model.payload import ClaimInput, Payload, ReleaseClaim
from gurney.model.run import Admit, Release
from gurney.service import Service
from gurney.subjects import (
    HANDLER_EXIST,
    MAP_GET,
    PAYLOAD_CLAIM,
    PAYLOAD_GET,
    PAYLOAD_RELEASE,
    SCHEDULER_ADMIT,
    SCHEDULER_RELEASE,
)
from services.job import intake, machine, repository
from services.job.effects import Effects

_log = telemetry.log("job")

#: A job is stored this soon after the scheduler was asked, or not at all: its reservation lives 10 s.
STORE_WITHIN_S = 5.0


@dataclass
class _Taken:
    """What a create holds of others, as far as it knows."""

    job_id: str
    #: Id or name of the payload on which there may be a claim.
    payload: str | None = None
    #: There may be a reservation.
    room: bool = False


class Create:
    """The answer to `svc.job.create`."""

    def __init__(self, service: Service, effects: Effects) -> None:
        self._bus = service.bus
        self._store = service.store
        self._settings = service.settings
        self._effects = effects

    async def __call__(self, question: JobCreate) -> Job:
        """Return the new job, or the one that this idempotency key made before.

        A dry run answers with a document that is not stored: its `id` is empty, for the edge to show as null.
        """
        if question.idempotency and (held := await repository.under_key(self._store, question.idempotency)):
            return _repeated(held, question.idempotency)
        intake.check(question.body)
        if question.dry_run:
            return await self._rehearse(question)
        taken = _Taken(ids.new_id("job"))
        telemetry.about(taken.job_id)
        try:
            return await self._accept(question, taken)
        except KeyTaken as lost:  # to a request that came at the same time
            await self._give_back(taken)
            return await self._winner(question, lost)
        except BaseException:
            await self._give_back(taken)
            raise

    async def _accept(self, question: JobCreate, taken: _Taken) -> Job:
        document, payload = await self._resolve(question, taken)
        job = intake.new_job(taken.job_id, question, document, payload, settings=self._settings, now=clock.now())
        asked = clock.monotonic()
        taken.room = job.admission is Admission.REJECT
        admitted = await self._bus.request(SCHEDULER_ADMIT, _admission(job))
        taken.room = admitted.reserved
        if clock.monotonic() - asked > STORE_WITHIN_S:
            raise Unavailable("the scheduler took too long", retry_after_s=1)
        job, effects = machine.begin(job.but(traceparent=telemetry.traceparent()), telemetry.current_trace_id())
        return await self._effects.carry_out(None, job, effects)

    async def _rehearse(self, question: JobCreate) -> Job:
        document, payload, _ = await asyncio.gather(
            self._bus.request(MAP_GET, Ref(caller=question.caller, ref=question.body.map)),
            self._bus.request(PAYLOAD_GET, Ref(caller=question.caller, ref=question.body.payload)),
            self._check_handlers(question),
        )
        job = intake.new_job(ids.new_id("job"), question, document, payload, settings=self._settings, now=clock.now())
        admitted = await self._bus.request(SCHEDULER_ADMIT, _admission(job, dry_run=True))
        return job.but(id="", node=admitted.node, waiting=admitted.waiting)

    async def _resolve(self, question: JobCreate, taken: _Taken) -> tuple[Map, Payload]:
        """Ask for MAP, claim and handlers at once, and wait for all: a claim must not come after it was given up."""
        document, payload, handlers = await asyncio.gather(
            self._bus.request(MAP_GET, Ref(caller=question.caller, ref=question.body.map)),
            self._claim(question.caller, question.body.payload, taken),
            self._check_handlers(question),
            return_exceptions=True,
        )
        for result in (document, payload, handlers):
            if isinstance(result, BaseException):
                raise result
        assert isinstance(document, Map)  # noqa: S101  # what is left for the type checker
        assert isinstance(payload, Payload)  # noqa: S101
        return document, payload

    async def _claim(self, caller: Caller, ref: str, taken: _Taken) -> Payload:
        taken.payload = ref
        try:
            payload = await self._bus.request(PAYLOAD_CLAIM, ClaimInput(caller=caller, payload=ref, job=taken.job_id))
        except GurneyError as fault:
            if not isinstance(fault, Unavailable):  # refused, so there is none
                taken.payload = None
            raise
        taken.payload = payload.id
        return payload

    async def _check_handlers(self, question: JobCreate) -> None:
        if question.body.handlers:
            handlers = tuple(dict.fromkeys(question.body.handlers))
            await self._bus.request(HANDLER_EXIST, HandlersExist(caller=question.caller, handlers=handlers))

    async def _give_back(self, taken: _Taken) -> None:
        """Give back what was taken, as well as it goes: orphans are swept by their owners."""
        asked = []
        if taken.payload:
            claim = ReleaseClaim(payload=taken.payload, job=taken.job_id)
            asked.append(self._bus.request(PAYLOAD_RELEASE, claim))
        if taken.room:
            asked.append(self._bus.request(SCHEDULER_RELEASE, Release(job_id=taken.job_id)))
        for result in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(result, BaseException):
                _log.info("left to a sweep", job=taken.job_id, error=result)

    async def _winner(self, question: JobCreate, lost: KeyTaken) -> Job:
        if question.idempotency and (held := await repository.under_key(self._store, question.idempotency)):
            return _repeated(held, question.idempotency)
        raise Unavailable("the request was made twice at once", retry_after_s=1) from lost


def _repeated(held: Job, idempotency: Idempotency) -> Job:
    """Return the answer to a request that was made before."""
    held.repeated(idempotency)
    if held.deleting:
        raise Unavailable(f"the job of this key, {held.id}, is being deleted", retry_after_s=1)
    return held


def _admission(job: Job, *, dry_run: bool = False) -> Admit:
    return Admit(
        job_id=job.id,
        project=job.project,
        priority=job.priority,
        admission=job.admission,
        request=job.request,
        dry_run=dry_run,
    )
