"""An immutable view of the nodes and of what live placements hold there. Free room is derived, never counted. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from gurney.model.resources import Amount, Gpu
from gurney.model.run import Node, NodeState, Placement
from services.scheduler.shape import MILLI, Shape, milli

#: A node that was lost for so long does not count when it is asked what the cluster could hold.
COUNTS_FOR = timedelta(minutes=10)


@dataclass(frozen=True)
class NodeView:
    """One node. Memory in bytes, cpu in thousandths of a core."""

    id: str
    state: NodeState
    #: No heartbeat for some time: nothing new is placed there.
    silent: bool
    #: Whether it may come back: not lost for long.
    counts: bool
    kinds: tuple[str, ...]
    labels: Mapping[str, str]
    cpu: int
    memory: int
    gpus: tuple[Gpu, ...]
    used_cpu: int = 0
    used_memory: int = 0
    #: UUIDs, one for each use.
    used_gpus: tuple[str, ...] = ()

    @property
    def free_cpu(self) -> int:
        return self.cpu - self.used_cpu

    @property
    def free_memory(self) -> int:
        return self.memory - self.used_memory

    def suited(self, shape: Shape) -> list[Gpu]:
        """Return the GPUs that would do, free or not."""
        return [gpu for gpu in self.gpus if _suits(gpu, shape)]

    def free_suited(self, shape: Shape) -> list[str]:
        """Return the UUIDs of the GPUs that would do and are free."""
        return [gpu.uuid for gpu in self.suited(shape) if gpu.uuid not in self.used_gpus]

    def holding(self, cpu: int, memory: int, gpus: Sequence[str]) -> "NodeView":
        """Return the node with this much more in use."""
        return replace(
            self,
            used_cpu=self.used_cpu + cpu,
            used_memory=self.used_memory + memory,
            used_gpus=(*self.used_gpus, *gpus),
        )

    @property
    def used(self) -> Amount:
        return Amount(cpu=self.used_cpu / MILLI, memory=self.used_memory, gpus=len(self.used_gpus))

    @property
    def free(self) -> Amount:
        unused = {gpu.uuid for gpu in self.gpus}.difference(self.used_gpus)
        return Amount(cpu=self.free_cpu / MILLI, memory=self.free_memory, gpus=len(unused))


@dataclass(frozen=True)
class Snapshot:
    """The cluster at one moment."""

    nodes: Mapping[str, NodeView]
    #: Job id -> run ids of its live placements.
    live: Mapping[str, tuple[str, ...]]

    def placed(self, job_id: str, run_id: str, node: str, shape: Shape, gpus: tuple[str, ...]) -> "Snapshot":
        """Return the cluster with one more placement."""
        view = self.nodes[node].holding(shape.cpu, shape.memory, gpus)
        runs = (*self.live.get(job_id, ()), run_id)
        return Snapshot({**self.nodes, node: view}, {**self.live, job_id: runs})


def snapshot_of(
    nodes: Iterable[Node], placements: Iterable[Placement], now: datetime, silent_after: timedelta
) -> Snapshot:
    """Return the view of these nodes and live placements."""
    used: dict[str, _Used] = {}
    live: dict[str, tuple[str, ...]] = {}
    for placement in placements:
        live[placement.job_id] = (*live.get(placement.job_id, ()), placement.id)
        if placement.node is not None:
            used.setdefault(placement.node, _Used()).add(placement)
    views = {}
    for node in nodes:
        view = _view(node, unseen=now - node.last_seen_at, silent_after=silent_after)
        views[node.id] = used[node.id].on(view) if node.id in used else view
    return Snapshot(views, live)


class _Used:
    """What the placements of one node hold together."""

    def __init__(self) -> None:
        self._cpu = 0
        self._memory = 0
        self._gpus: list[str] = []

    def add(self, placement: Placement) -> None:
        self._cpu += milli(placement.resources.cpu or 0)
        self._memory += placement.resources.memory or 0
        self._gpus += placement.gpus

    def on(self, view: NodeView) -> NodeView:
        return view.holding(self._cpu, self._memory, self._gpus)


def _view(node: Node, *, unseen: timedelta, silent_after: timedelta) -> NodeView:
    return NodeView(
        id=node.id,
        state=node.state,
        silent=unseen > silent_after,
        counts=node.state is not NodeState.LOST or unseen < COUNTS_FOR,
        kinds=node.kinds,
        labels=node.labels,
        cpu=int(round(node.capacity.cpu * MILLI, 6)),  # downwards: a node never promises more than it has
        memory=node.capacity.memory,
        gpus=node.gpus,
    )


def _suits(gpu: Gpu, shape: Shape) -> bool:
    fits = gpu.health == "ok" and gpu.memory >= shape.gpu_memory
    return fits and shape.gpu_model in {None, gpu.model}
