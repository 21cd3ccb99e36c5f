"""Places what waits: one evaluation for all that happened in a turn of the loop, one batch of writes for its plan."""

import asyncio
from collections.abc import Callable, Sequence

from gurney import clock, telemetry
from gurney.documents.port import Write
from gurney.errors import GurneyError, Internal
from gurney.model.job import PlacementRequest
from gurney.model.run import Placement
from services.scheduler import machine
from services.scheduler.grid import Load
from services.scheduler.ledger import Ledger
from services.scheduler.office import Office
from services.scheduler.order import Entry, entry_of
from services.scheduler.plan import Plan
from services.scheduler.policy import evaluate
from services.scheduler.repository import PLACEMENTS
from services.scheduler.shape import MILLI

#: Seconds after which a placement whose write failed is decided again.
RETRY_S = 1.0

_log = telemetry.log("scheduler")

Taken = tuple[Entry, Placement]


class Placer:
    """Decides in memory, at once and alone in the loop; the write follows, and undoes the decision where it fails."""

    def __init__(self, office: Office) -> None:
        self._store = office.store
        self._tenure = office.tenure
        self._cluster = office.cluster
        self._effects = office.effects
        self.ledger = Ledger(office, self.wake)
        self._awake = False
        self._closed = False
        self._writing: set[asyncio.Task[None]] = set()
        #: Called after each evaluation that left jobs waiting.
        self.on_blocked: Callable[[Plan], None] = lambda _: None

    def want(self, request: PlacementRequest) -> None:
        """Take a job into the queue."""
        self._cluster.want(entry_of(request, clock.now(), telemetry.caused(request.traceparent)))
        self.wake()

    def wake(self) -> None:
        """Have the queue evaluated, in this turn of the loop or the next."""
        if not self._awake and not self._closed:
            self._awake = True
            asyncio.get_running_loop().call_soon(self._evaluate)

    async def close(self) -> None:
        """Decide nothing more, and wait for writes under way."""
        self._closed = True
        while self._writing:
            await asyncio.wait(self._writing)

    def _evaluate(self) -> None:
        if self._closed or not self._tenure.leads:
            return
        self._awake = False
        begun = clock.monotonic()
        now = clock.now()
        cluster = self._cluster
        plan = evaluate(cluster.snapshot(now), cluster.queue.shapes, cluster.rules(now))
        taken = [(each.entry, _traced(each.entry, machine.placed(each, cluster.epoch))) for each in plan.decisions]
        for entry, placement in taken:
            cluster.queue.drop(entry.job_id)
            self.ledger.decided(placement)
        if taken:
            self._spawn(taken)
        if cluster.book(plan.bookings):
            self.wake()
        if len(cluster.queue):
            self.on_blocked(plan)
        _measure(plan.load, len(cluster.queue))
        telemetry.PLACEMENT_SECONDS.observe(clock.monotonic() - begun)

    def _spawn(self, taken: Sequence[Taken]) -> None:
        task = asyncio.create_task(self._write(taken), name="scheduler:placements")
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write(self, taken: Sequence[Taken]) -> None:
        faults: Sequence[GurneyError | None]
        try:
            faults = await self._store.write(*[self._write_of(placement) for _, placement in taken])
        except GurneyError as error:
            faults = [error] * len(taken)
        except Exception:  # whatever it was: a decision that nobody wrote holds its room, and its job waits for ever
            _log.exception("placements cannot be written")
            faults = [Internal()] * len(taken)
        for (entry, placement), fault in zip(taken, faults, strict=True):
            if fault:
                await self._undo(entry, placement, fault)

    def _write_of(self, placement: Placement) -> Write:
        trace = placement.traceparent
        events = (*self._effects.news(None, placement, trace), self._effects.start(placement, trace))
        return Write(PLACEMENTS, placement.id, 0, placement, events)

    async def _undo(self, entry: Entry, placement: Placement, fault: GurneyError) -> None:
        """Follow what is written about the run: nothing, so that it waits again, or what somebody wrote first."""
        _log.info("placement is not written", run=placement.id, reason=fault.code)
        while not self._closed:
            try:
                found = await self._store.documents.get(PLACEMENTS, placement.id)
                await self.ledger.reread(placement.id)
            except GurneyError:
                await asyncio.sleep(RETRY_S)
            else:
                if found is None:
                    asyncio.get_running_loop().call_later(RETRY_S, self.want, entry.request)
                return


def _traced(entry: Entry, placement: Placement) -> Placement:
    """Return the placement with the span that shows how long the job waited for it."""
    with telemetry.span(
        "place",
        telemetry.INTERNAL,
        entry.traceparent,
        service="scheduler",
        about=placement.id,
        attributes={"gurney.node": placement.node or ""},
        since=entry.since,
    ) as span:
        return placement.but(traceparent=span.traceparent)


def _measure(load: Load, waiting: int) -> None:
    telemetry.JOBS_WAITING.set(waiting)
    for resource, unit, capacity, used in zip(("cpu", "memory", "gpus"), (MILLI, 1, 1), *load, strict=True):
        telemetry.NODE_CAPACITY.labels(resource).set(capacity / unit)
        telemetry.NODE_USED.labels(resource).set(used / unit)
