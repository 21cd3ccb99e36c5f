"""A cluster on a virtual clock, under the very core of the scheduler."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from gurney import clock
from gurney.model.job import PlacementRequest, Priority, RunRequest
from gurney.model.resources import Resources
from gurney.model.run import Node
from services.scheduler.demand import Typical
from services.scheduler.order import Entry, Lane, Shapes, alone
from services.scheduler.overview import Overview
from services.scheduler.plan import Plan
from services.scheduler.policy import evaluate
from services.scheduler.snapshot import Booking, Snapshot
from services.scheduler.turns import Rules
from services.simulate.trace import EPOCH, URN, WHOLE, Task

#: No node falls silent here.
FOR_EVER = timedelta(days=36500)
_RUN = RunRequest(
    urn=URN, digest="", generation="monai", command=(), input_path="", output_path="", payload="", resources=Resources()
)
_REQUEST = PlacementRequest(
    job_id="",
    attempt=1,
    project="default",
    created_by="",
    priority=Priority.NORMAL,
    requested_at=EPOCH,
    created_at=EPOCH,
    request=_RUN,
)


def entry_of(number: int, task: Task, at: float) -> Entry:
    """Return a task as a job that waits; a later number is a younger job."""
    when = moment(at)
    request = _REQUEST.model_copy(update={"job_id": f"job_{number:012d}", "project": task.project, "created_at": when})
    return Entry((when, request.job_id), Lane(task.project, Priority.NORMAL, task.map, task.shape), request, when)


def moment(at: float) -> datetime:
    """Return a time of the virtual clock."""
    return EPOCH + timedelta(seconds=at)


class World:
    """Nodes, and what runs there."""

    def __init__(self, nodes: Sequence[Node], typical: tuple[Typical, ...], ties: random.Random | None = None) -> None:
        self._nodes = {node.id: node for node in nodes}
        self._typical = typical
        self._overview = Overview(FOR_EVER)
        self._units: dict[str, int] = {}
        self._chance: Callable[[Sequence[str]], str] | None = ties.choice if ties else None
        #: Units of GPUs that there are, and that are given.
        self.units = WHOLE * sum(len(node.gpus) for node in nodes)
        self.used = 0
        #: Milliseconds that decisions took, from the change before them to the plan; the mean of those of one plan.
        self.decision_ms: list[float] = []

    def offer(self, entry: Entry) -> Plan:
        """Place a job where it fits, at the beginning of time."""
        return self.decide(alone(entry), Rules(EPOCH))

    def decide(self, waiting: Shapes, rules: Rules) -> Plan:
        """Place what fits; what is placed runs from then on."""
        begun = clock.monotonic()
        plan = evaluate(self.snapshot(rules.now), waiting, rules, self._chance)
        self.decision_ms.append((clock.monotonic() - begun) * 1000 / max(1, len(plan.decisions)))
        for decision in plan.decisions:
            shape = decision.entry.shape
            self._overview.place(decision.held)
            self._units[decision.run_id] = shape.gpu_share or shape.gpus * WHOLE
            self.used += self._units[decision.run_id]
        return plan

    def book(self, bookings: Mapping[str, Booking]) -> bool:
        """Keep room for jobs that wait; tells whether others may have more than before."""
        return self._overview.book(bookings)

    def end(self, run_id: str) -> None:
        """Let a run end."""
        self._overview.free(run_id)
        self.used -= self._units.pop(run_id)

    def snapshot(self, at: datetime) -> Snapshot:
        return self._overview.snapshot(self._nodes, at, self._typical)

    def share_of(self, run_id: str) -> float:
        """Return which share of the cluster a run holds."""
        return self._overview.share_of(run_id)

    @property
    def running(self) -> list[str]:
        return list(self._units)

    @property
    def allocation(self) -> float:
        """Per cent of all GPU units that are given."""
        return 100 * self.used / self.units if self.units else 0.0

    def record(self) -> Snapshot:
        """Return the cluster as it is, for later: with nothing lent."""
        snapshot = self._overview.snapshot(self._nodes, EPOCH, self._typical)
        return replace(snapshot, live=dict(snapshot.live), using=dict(snapshot.using), kept=None)

    def fragmentation(self, against: tuple[Typical, ...]) -> float:
        """Return the per cent of the free GPUs that typical tasks cannot use, as the FGD paper counts."""
        return 100 * self._overview.snapshot(self._nodes, EPOCH, self._typical).fragmentation(against)
