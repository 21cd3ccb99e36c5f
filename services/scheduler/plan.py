"""A plan: what is placed where, and why the rest waits. `check` tells what must never be. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from gurney.ids import run_id
from gurney.model.job import WaitReason
from services.scheduler.order import Entry
from services.scheduler.shape import Shape
from services.scheduler.snapshot import NodeView, Snapshot

#: The job has a live placement, of an attempt that has not ended.
ATTEMPT_LIVE = WaitReason(code="attempt_live", count=1, message="an earlier attempt has not ended")


@dataclass(frozen=True, slots=True)
class Decision:
    """One job goes to one node."""

    entry: Entry
    node: str
    #: UUIDs.
    gpus: tuple[str, ...] = ()

    @property
    def run_id(self) -> str:
        return run_id(self.entry.job_id, self.entry.request.attempt)


@dataclass(frozen=True, slots=True)
class Plan:
    """The outcome of one evaluation."""

    decisions: tuple[Decision, ...]
    #: Why jobs of a shape wait, for the shapes of which some do.
    blocked: Mapping[Shape, tuple[WaitReason, ...]]
    #: Jobs that cannot be placed whatever room there is.
    held: frozenset[str]
    #: The cluster as it will be.
    after: Snapshot

    def reasons(self, entry: Entry) -> tuple[WaitReason, ...]:
        """Return why a job waits; empty where the plan does not say."""
        return (ATTEMPT_LIVE,) if entry.job_id in self.held else self.blocked.get(entry.shape, ())


def check(snapshot: Snapshot) -> list[str]:
    """Return every broken promise: no node over-committed, no GPU given twice, no two live placements of a job."""
    twice = [f"{job} has live placements {', '.join(runs)}" for job, runs in snapshot.live.items() if len(runs) > 1]
    return [fault for node in snapshot.nodes.values() for fault in _over_committed(node)] + twice


def _over_committed(node: NodeView) -> list[str]:
    faults = []
    if node.free_cpu < 0:
        faults.append(f"{node.id}: {node.used_cpu} of {node.cpu} thousandths of a core")
    if node.free_memory < 0:
        faults.append(f"{node.id}: {node.used_memory} of {node.memory} bytes")
    if len(set(node.used_gpus)) < len(node.used_gpus):
        faults.append(f"{node.id}: a GPU is given twice: {', '.join(sorted(node.used_gpus))}")
    return faults
