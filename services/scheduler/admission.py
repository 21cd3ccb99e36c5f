"""Which jobs come in, and what the job service asks about those that wait."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from gurney import clock, ids, telemetry
from gurney.consume import Reject
from gurney.errors import FieldError, Infeasible, NoNodes, NoRoom, NotFound
from gurney.model.common import Empty
from gurney.model.event import Event
from gurney.model.job import Admission, JobEvent, JobGet, JobState, PlacementRequest, Waiting, WaitReason
from gurney.model.run import (
    Admit,
    Admitted,
    Explain,
    Explained,
    Placement,
    PlacementEvents,
    PlacementsSince,
    PlacementState,
    Release,
)
from gurney.subjects import JOB_GET
from services.scheduler import feasible, forecast, lifecycle, machine
from services.scheduler.blocker import blocker
from services.scheduler.office import Office
from services.scheduler.order import Entry, alone, entry_of, lanes_of, waits
from services.scheduler.placer import Placer
from services.scheduler.plan import Decision
from services.scheduler.policy import evaluate
from services.scheduler.repository import PLACEMENTS
from services.scheduler.shares import asks

#: A request older than this may be of a job that ended long ago, whose placement is removed by now: the job is asked.
#: Half of the time for which ended placements are kept, so that clocks may differ; where they differ by more, too.
OLD_AFTER = timedelta(minutes=5)
RETRY_AFTER_S = 5.0
#: A reservation whose job is not there after so many seconds is given back.
RESERVED_FOR_S = 10.0

#: The field of a request that is at fault, by the reason of a filter of `feasible.EVER`.
FIELDS = {
    "no_runtime": "map",
    "node_labels": "resources.node_labels",
    "gpus": "resources.gpus",
    "gpu_model": "resources.gpu_model",
    "compute_capability": "resources.compute_capability",
    "gpu_memory": "resources.gpu_memory",
    "cpu": "resources.cpu",
    "memory": "resources.memory",
}

_log = telemetry.log("scheduler")


class AdmissionDesk:
    """Answers the job service."""

    def __init__(self, office: Office, placer: Placer) -> None:
        self._service = office.service
        self._bus = office.bus
        self._store = office.store
        self._cluster = office.cluster
        self._placer = placer
        self._effects = office.effects

    async def admit(self, question: Admit) -> Admitted:
        """Refuse what never fits; with `reject`, hold room for the job or refuse it."""
        entry = _entry(question)
        self._refuse_infeasible(entry)
        if question.dry_run:
            return self._rehearse(entry, question.admission)
        if question.admission is Admission.QUEUE:
            return Admitted(reserved=False)
        held = self._cluster.placements.get(ids.run_id(question.job_id, 1))
        if held is not None:
            return Admitted(reserved=True)
        decision = self._room_for(entry)
        placement = machine.reserved(question, decision, self._cluster.epoch)
        if await self._placer.ledger.reserve(placement) is None:
            raise NoRoom(f"{question.job_id} has ended", retry_after_s=RETRY_AFTER_S)
        asyncio.get_running_loop().call_later(RESERVED_FOR_S, self._look_after, placement.id)
        return Admitted(reserved=True)

    def _look_after(self, run_id: str) -> None:
        """Have a reservation looked after whose job has not come."""
        held = self._cluster.placements.get(run_id)
        if held and held.state is PlacementState.RESERVED:
            self._service.reconcile_soon()

    def _refuse_infeasible(self, entry: Entry) -> None:
        nodes = self._cluster.capable(entry.since)
        if not nodes:
            raise NoNodes("no node is known: no agent has reported yet", retry_after_s=RETRY_AFTER_S)
        reasons = feasible.reasons(nodes, entry.shape, feasible.EVER)
        if reasons:
            errors = [FieldError(field=FIELDS[each.code], message=each.message) for each in reasons]
            raise Infeasible("no node could ever run this: " + "; ".join(each.message for each in reasons), errors)
        least = asks(replace(entry.shape, gpus=0) if entry.shape.gpu_share else entry.shape, None)
        if over := self._cluster.rules(entry.since).over_quota(entry.lane.project, least):
            raise Infeasible(over.message, [FieldError(field="resources", message=over.message)])

    def _rehearse(self, entry: Entry, admission: Admission) -> Admitted:
        """Say where the job would run now, or for what and how long it would wait."""
        try:
            return Admitted(reserved=False, node=self._room_for(entry).node)
        except NoRoom:
            if admission is Admission.REJECT:
                raise
            return Admitted(reserved=False, waiting=self._waiting(entry))

    def _room_for(self, entry: Entry) -> Decision:
        """Return where the job finds room that none of the waiting jobs before it could use; raises `NoRoom`."""
        now, cluster = entry.since, self._cluster
        plan = evaluate(cluster.snapshot(now), cluster.queue.with_one_more(entry), cluster.rules(now))
        found = next((each for each in plan.decisions if each.entry is entry), None)
        if found is None:
            short = "; ".join(f"{each.message} ({each.code})" for each in plan.reasons(entry))
            raise NoRoom(f"no room now: {short}", retry_after_s=RETRY_AFTER_S)
        return found

    async def release(self, question: Release) -> Empty:
        """Give a reservation back; what has become a placement stays."""
        found = await self._store.documents.get(PLACEMENTS, ids.run_id(question.job_id, 1))
        if found and found.state is PlacementState.RESERVED:
            await self._placer.ledger.remove([found])
        return Empty()

    async def requested(self, subject: str, data: bytes) -> None:
        """Take a job in, as the job service tells of it."""
        del subject
        request = JobEvent.decode(data).placement
        if request is None:
            raise Reject("the event carries no placement request")
        if abs(clock.now() - request.requested_at) < OLD_AFTER or await self._is_wanted(request):
            await self.want(request)

    async def want(self, request: PlacementRequest) -> None:
        """Place a job now or later; what has a placement is not placed again."""
        held = self._cluster.placements.get(ids.run_id(request.job_id, request.attempt))
        if held is None:
            self._placer.want(request)
        elif held.state is PlacementState.RESERVED:
            await self._placer.ledger.change(
                held.id, lambda found: machine.taken_up(found, request, clock.now()), self._start
            )

    def _start(self, placement: Placement) -> list[Event]:
        return [self._effects.start(placement)]

    async def _is_wanted(self, request: PlacementRequest) -> bool:
        try:
            job = await self._bus.request(JOB_GET, JobGet(job=request.job_id))
        except NotFound:
            return False
        return job.state is JobState.REQUESTED and job.attempt == request.attempt

    async def explain(self, question: Explain) -> Explained:
        """Say why a job waits, as things are now."""
        entry = self._cluster.queue.get(question.job_id)
        if entry is None:
            return Explained(waiting=None)
        return Explained(waiting=self._waiting(entry, names=question.names))

    def _waiting(self, entry: Entry, *, names: bool = False) -> Waiting:
        now, cluster = clock.now(), self._cluster
        snapshot, rules = cluster.snapshot(now), cluster.rules(now)
        lanes = lanes_of(
            cluster.queue.shapes if waits(cluster.queue.shapes, entry) else cluster.queue.with_one_more(entry)
        )
        place, wait_s = forecast.outlook(entry, lanes, snapshot, rules)
        short = evaluate(snapshot, alone(entry), rules).reasons(entry)
        found = blocker(entry, lanes, snapshot, rules)
        return Waiting(
            position=place,
            blocker=found and found.told(names=names),
            reasons=(*self._hopeless(entry), *short),
            estimated_start=None if wait_s is None else now + timedelta(seconds=wait_s),
        )

    def _hopeless(self, entry: Entry) -> tuple[WaitReason, ...]:
        """Return that no known node could ever hold the job, where that is so, and for how long it waits for one."""
        since = self._cluster.hopeless.get(entry.shape)
        if since is None:
            return ()
        left = max(0.0, since + self._service.settings.infeasible_after - clock.monotonic())
        message = f"no known node could ever hold this job: it fails unless one that can joins within {left:.0f} s"
        return (WaitReason(code="infeasible", count=len(self._cluster.nodes), message=message),)

    async def placements(self, question: PlacementsSince) -> PlacementEvents:
        """Return what the placements of these runs say of their jobs."""
        found = await self._store.documents.get_many(PLACEMENTS, question.runs)
        return PlacementEvents(items=lifecycle.page(found))


def _entry(question: Admit) -> Entry:
    now = clock.now()
    request = PlacementRequest(
        job_id=question.job_id,
        attempt=1,
        project=question.project,
        created_by="",
        priority=question.priority,
        requested_at=now,
        created_at=now,
        request=question.request,
    )
    return entry_of(request, now)
