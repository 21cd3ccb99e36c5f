"""Makes up what a crash or a wiped stream has left: debts to the payload service, claims, events of placements."""

from gurney import clock, ids, telemetry
from gurney.errors import Conflict, GurneyError, NotFound
from gurney.model.job import Job
from gurney.model.payload import RestoreClaims
from gurney.model.run import PlacementsSince
from gurney.service import Service
from gurney.subjects import PAYLOAD_RESTORE, SCHEDULER_PLACEMENTS
from services.job import events, repository
from services.job.effects import Effects
from services.job.settle import Settle

#: Seconds in which who waits for a job can say so again, after the clock was put forward or NATS was away.
SUSPECTED_S = 20.0

_log = telemetry.log("job")


class Reconcile:
    """One round; each part on its own, so that one service that is away stops no other part."""

    def __init__(self, service: Service, effects: Effects, settle: Settle) -> None:
        self._bus = service.bus
        self._store = service.store
        self._effects = effects
        self._settle = settle
        #: Transient jobs that seem to be forsaken, and since when, by the monotonic clock.
        self._suspected: dict[str, float] = {}

    async def __call__(self) -> None:
        """Do all parts; raises the last fault, so that the round comes again soon."""
        fault: GurneyError | None = None
        for part in (self._count, self._end_forsaken, self._pay_debts, self._restore_claims, self._fold_placements):
            try:
                await part()
            except GurneyError as error:
                fault = error
        if fault:
            raise fault

    async def _count(self) -> None:
        for state, count in (await repository.live_by_state(self._store)).items():
            telemetry.JOBS.labels(state).set(count)

    async def _end_forsaken(self) -> None:
        """Cancel transient jobs for which nobody waits any more; of those that have ended the data go."""
        now = clock.monotonic()
        found = await repository.forsaken(self._store, clock.now())
        self._suspected = {job.id: self._suspected.get(job.id, now) for job in found}
        for job in found:
            if now - self._suspected[job.id] < SUSPECTED_S:
                continue
            event = events.Finalize() if job.terminal else events.CancelRequested()
            try:
                await self._effects.happened(job.id, event)
            except (Conflict, NotFound) as fault:  # it ended, or went, in this moment
                _log.info("looked at again later", job=job.id, error=fault)

    async def _pay_debts(self) -> None:
        """Finish deletions and finalizations."""
        more = True
        while more:
            owing = await repository.owing(self._store)
            more = len(owing) == repository.BATCH
            await self._settle_all(owing)

    async def _settle_all(self, owing: list[Job]) -> None:
        """Settle each job; raises the last fault after all were tried."""
        fault: GurneyError | None = None
        for job in owing:
            try:
                await self._settle(job)
            except GurneyError as error:
                fault = error
        if fault:
            raise fault

    async def _restore_claims(self) -> None:
        async for jobs in repository.live(self._store):
            claims = tuple((job.payload, job.id) for job in jobs)
            await self._bus.request(PAYLOAD_RESTORE, RestoreClaims(claims=claims))

    async def _fold_placements(self) -> None:
        """Fold what the placements of live jobs say and no message brought."""
        async for jobs in repository.live(self._store):
            runs = tuple(ids.run_id(job.id, job.attempt) for job in jobs)
            told = await self._bus.request(SCHEDULER_PLACEMENTS, PlacementsSince(runs=runs))
            for message in told.items:
                await self._fold(message.job_id, events.told(message))

    async def _fold(self, job_id: str, event: events.Event) -> None:
        try:
            await self._effects.happened(job_id, event, repository.anything)
        except NotFound:
            _log.info("placement of no job", job=job_id)
        except GurneyError as fault:  # one job's fault stops no other
            _log.warning("placement not folded", job=job_id, error=fault)
