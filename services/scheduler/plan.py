"""A plan: what is placed where, and why the rest waits. `check` tells what must never be. Pure."""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from gurney.ids import run_id
from gurney.model.job import WaitReason
from services.scheduler.grid import Load
from services.scheduler.order import Entry, Lane
from services.scheduler.shape import Shape, mib
from services.scheduler.snapshot import Booking, Held, NodeView, Snapshot

#: The job has a live placement, of an attempt that has not ended.
ATTEMPT_LIVE = WaitReason(code="attempt_live", count=1, message="an earlier attempt has not ended")


@dataclass(frozen=True, slots=True)
class Decision:
    """One job goes to one node."""

    entry: Entry
    node: str
    at: datetime
    #: UUIDs.
    gpus: tuple[str, ...] = ()
    #: MiB of the one GPU; 0: its GPUs are its own.
    share: int = 0

    @property
    def run_id(self) -> str:
        return run_id(self.entry.job_id, self.entry.request.attempt)

    @property
    def held(self) -> Held:
        """What the job will hold."""
        lane = self.entry.lane
        return Held(
            run_id=self.run_id,
            job_id=self.entry.job_id,
            node=self.node,
            cpu=lane.shape.cpu,
            memory=lane.shape.memory,
            gpus=self.gpus,
            share=self.share,
            project=lane.project,
            digest=lane.digest,
            since=self.at,
        )


class Blocked(Mapping[Shape, tuple[WaitReason, ...]]):
    """Why shapes wait: found out when somebody asks, since mostly nobody does."""

    def __init__(self, shapes: Iterable[Shape], find: Callable[[Shape], tuple[WaitReason, ...]]) -> None:
        self._shapes: dict[Shape, tuple[WaitReason, ...] | None] = dict.fromkeys(shapes)
        self._find = find

    def __getitem__(self, shape: Shape) -> tuple[WaitReason, ...]:
        if (known := self._shapes[shape]) is None:
            known = self._shapes[shape] = self._find(shape)
        return known

    def __iter__(self) -> Iterator[Shape]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


@dataclass(frozen=True, slots=True)
class Plan:
    """The outcome of one evaluation."""

    decisions: tuple[Decision, ...]
    #: Why jobs of a shape wait, for the shapes of which some do; of a kept board, as it is when that is asked.
    blocked: Mapping[Shape, tuple[WaitReason, ...]]
    #: Why lanes wait although there may be room: their projects hold all that they may.
    over_quota: Mapping[Lane, WaitReason]
    #: Node -> what is kept of it from now on.
    bookings: Mapping[str, Booking]
    #: Jobs with a live placement before the plan: an earlier attempt of theirs has not ended.
    live: Container[str]
    #: The cluster as it will be, and what is in use then.
    after: Snapshot
    load: Load

    def reasons(self, entry: Entry) -> tuple[WaitReason, ...]:
        """Return why a job waits that the plan did not place; empty where the plan does not say."""
        if entry.job_id in self.live:
            return (ATTEMPT_LIVE,)
        if entry.lane in self.over_quota:
            return (self.over_quota[entry.lane],)
        return self.blocked.get(entry.shape, ())


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
    faults += [f"{node.id}: a GPU is given twice: {uuid}" for uuid, uses in Counter(node.used_gpus).items() if uses > 1]
    shared = {uuid for uuid, _ in node.used_shares}
    faults += [f"{node.id}: a GPU is given and shared: {uuid}" for uuid in sorted(shared & set(node.used_gpus))]
    for gpu in node.gpus:
        given = sum(share for uuid, share in node.used_shares if uuid == gpu.uuid)
        if given > mib(gpu.memory):
            faults.append(f"{node.id}: {given} of {mib(gpu.memory)} MiB of {gpu.uuid}")
    return faults
