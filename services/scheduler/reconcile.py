"""Makes up what is missing: placements, cancellations, answers; and removes what has outlived its use."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Literal

from gurney import clock, consume, telemetry
from gurney.errors import GurneyError, NotFound
from gurney.model.base import Reason
from gurney.model.event import Event
from gurney.model.job import JobGet, JobOwed, JobRefs, PlacementRequest
from gurney.model.run import Outcome, Placement, PlacementState
from gurney.streams import agent_runs
from gurney.subjects import JOB_ALIVE, JOB_GET, JOB_OWED
from services.scheduler import feasible, machine, repository
from services.scheduler.admission import RESERVED_FOR_S
from services.scheduler.handlers import Handlers
from services.scheduler.ledger import Ledger
from services.scheduler.office import Office
from services.scheduler.shape import Shape

#: A command that was not answered for so many seconds is sent again, and so is the next.
ANSWER_WITHIN_S = 10.0
#: Placements of ended jobs are kept for so long. Longer than `admission.OLD_AFTER`.
KEPT_FOR = timedelta(minutes=10)
#: Seconds by which the wall clock may move against the monotonic one between two rounds.
JUMP_S = 5.0

_log = telemetry.log("scheduler")


def is_unanswered(placement: Placement, unanswered_for: float) -> bool:
    """Tell whether the agent was told something so many seconds ago and should have answered."""
    match placement.state:
        case PlacementState.PLACED:
            is_told = True
        case PlacementState.CONFIRMED:
            is_told = placement.cancel_requested_at is not None
        case _:
            is_told = False
    return is_told and unanswered_for >= ANSWER_WITHIN_S


class Steadiness:
    """Whether times that were written lately can be compared with the wall clock: it has not jumped since. Pure."""

    def __init__(self) -> None:
        self._offset: float | None = None
        self._since = 0.0

    def steady_for(self, wall: datetime, monotonic: float) -> float:
        """Return for how many seconds the wall clock has gone as time does."""
        offset = wall.timestamp() - monotonic
        if self._offset is None or abs(offset - self._offset) > JUMP_S:
            self._offset, self._since = offset, monotonic
        return monotonic - self._since


class Reconcile:
    """One round; each part on its own, so that one service that is away stops no other part."""

    def __init__(self, office: Office, handlers: Handlers, ledger: Ledger) -> None:
        self._bus = office.bus
        self._store = office.store
        self._infeasible_after = office.service.settings.infeasible_after
        self._desk, self._runs, self._beats = handlers.desk, handlers.runs, handlers.beats
        self._effects = office.effects
        self._cluster = office.cluster
        self._presence = office.presence
        self._ledger = ledger
        self._steadiness = Steadiness()

    async def __call__(self) -> None:
        """Do all parts; raises the last fault, so that the round comes again soon."""
        fault: GurneyError | None = None
        for part in (
            self._stragglers,
            self._beats.refresh,
            self._consumers,
            self._commands,
            self._cancellations,
            self._requests,
            self._reservations,
            self._infeasible,
        ):
            try:
                await part()
            except GurneyError as error:
                fault = error
        if fault:
            raise fault
        await self._prune()  # last, and only then: see `_requests`

    async def _stragglers(self) -> None:
        """Take over what a former leader wrote after we took over from it: it may have been held up at that line.

        Its agent refuses a start that does not fit beside what runs there, until it does.
        """
        for placement in await repository.live(self._store, before=self._cluster.epoch):
            _log.warning("placement of a former leader", run=placement.id, epoch=placement.epoch)
            await self._ledger.reread(placement.id)

    async def _consumers(self) -> None:
        """Make the nodes' consumers again, where their stream was wiped."""
        for node in list(self._cluster.nodes):
            await consume.ensure(self._bus, agent_runs(node))

    async def _commands(self) -> None:
        """Send starts and stops again. A node that is not there gets them when it comes back."""
        now = clock.monotonic()
        silent = {node.id for node in self._cluster.snapshot(clock.now()).nodes.values() if node.silent}
        events: list[Event] = []
        for placement in self._cluster.placements.values():
            notes = self._cluster.notes(placement.id)
            unanswered_for = min(self._presence.unchanged_for(placement.id, now), now - (notes.sent_at or 0.0))
            if placement.node not in silent and is_unanswered(placement, unanswered_for):
                notes.sent_at = now
                send = self._effects.start if placement.state is PlacementState.PLACED else self._effects.stop
                events.append(send(placement, again=True))
        if events:
            _log.info("commands are sent again", commands=len(events))
            await self._effects.offer(events)

    async def _cancellations(self) -> None:
        async for request in self._owed("canceling"):
            await self._runs.cancel(request.job_id, request.attempt)

    async def _requests(self) -> None:
        """Take in every job that waits, and drop those that do not: a repeated event may have brought them back.

        So no request outlives the placement that says that its attempt is over.
        """
        waiting = self._cluster.queue.heard_before(clock.now())
        async for request in self._owed("requested"):
            waiting.discard(request.job_id)
            if request.cancel_requested_at is None:
                await self._desk.want(request)
        for job_id in waiting:
            self._cluster.queue.drop(job_id)
            self._ledger.on_room()

    async def _owed(self, kind: Literal["requested", "canceling"]) -> AsyncIterator[PlacementRequest]:
        after: str | None = None
        while True:
            page = await self._bus.request(JOB_OWED, JobOwed(kind=kind, after=after))
            for request in page.items:
                yield request
            if page.next is None:
                return
            after = page.next

    async def _reservations(self) -> None:
        """Give back the room of jobs that never came to be."""
        now = clock.monotonic()
        for placement in list(self._cluster.placements.values()):
            old = self._presence.unchanged_for(placement.id, now) >= RESERVED_FOR_S
            if placement.state is PlacementState.RESERVED and old and not await self._exists(placement.job_id):
                await self._ledger.remove([placement])

    async def _exists(self, job_id: str) -> bool:
        try:
            await self._bus.request(JOB_GET, JobGet(job=job_id))
        except NotFound:
            return False
        return True

    async def _infeasible(self) -> None:
        """Fail what no known node has been able to hold for the set time."""
        now, wall = clock.monotonic(), clock.now()
        hopeless = self._hopeless(wall)
        # what is possible again, even for a moment, starts anew
        known = self._cluster.hopeless = {shape: self._cluster.hopeless.get(shape, now) for shape in hopeless}
        for shape, message in hopeless.items():
            if now - known[shape] >= self._infeasible_after:
                await self._fail(shape, Outcome(ending="failed", reason=Reason.of("infeasible", message)), wall)

    def _hopeless(self, now: datetime) -> dict[Shape, str]:
        """Return the shapes that no known node could ever hold, and what is short.

        Where every node has been lost for some time they count all the same, until they have left.
        """
        nodes = self._cluster.capable(now) or list(self._cluster.snapshot(now).nodes.values())
        found = {shape: feasible.reasons(nodes, shape, feasible.EVER) for shape in self._cluster.queue.shapes}
        return {shape: "; ".join(each.message for each in why) for shape, why in found.items() if why}

    async def _fail(self, shape: Shape, outcome: Outcome, now: datetime) -> None:
        for entry in [each for lane in self._cluster.queue.shapes.get(shape, {}).values() for each in lane]:
            request = entry.request
            self._cluster.queue.drop(request.job_id, request.attempt)
            never = machine.never_placed(request.job_id, request.attempt, outcome, self._cluster.epoch, now)
            await self._ledger.insert(never)
        self._ledger.on_room()

    async def _prune(self) -> None:
        """Remove old placements, but for those whose job has not folded its end yet.

        Not while their times may be of a clock that was put forward since: a request that is told again finds the
        placement of its attempt for as long as it may be taken for a new one.
        """
        if self._steadiness.steady_for(clock.now(), clock.monotonic()) < KEPT_FOR.total_seconds():
            return
        async for batch in repository.ended_before(self._store, clock.now() - KEPT_FOR):
            jobs = tuple({placement.job_id for placement in batch})
            live = set((await self._bus.request(JOB_ALIVE, JobRefs(jobs=jobs))).live)
            await self._ledger.remove([placement for placement in batch if placement.job_id not in live])
