"""An immutable view of the nodes and of what live placements hold there. Free room is derived, never counted. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import NamedTuple

from gurney.model.resources import Amount, Gpu
from gurney.model.run import Node, NodeState, Placement
from services.scheduler.board import Board
from services.scheduler.demand import Typical
from services.scheduler.grid import DRAINING, LOST, READY, SILENT, Home, Room
from services.scheduler.order import Entry
from services.scheduler.shape import MILLI, NEVER, Device, Shape, device_of, mib, milli, takes
from services.scheduler.shares import Using

#: A node that was lost for so long does not count when it is asked what the cluster could hold.
COUNTS_FOR = timedelta(minutes=10)

STANDINGS = {NodeState.READY: READY, NodeState.LOST: LOST, NodeState.DRAINING: DRAINING}


class Held(NamedTuple):
    """What a live placement holds. Memory in bytes, cpu in thousandths of a core."""

    run_id: str
    job_id: str
    node: str | None
    cpu: int
    memory: int
    #: UUIDs.
    gpus: tuple[str, ...] = ()
    #: MiB of its one GPU; 0: it has its GPUs for itself.
    share: int = 0
    project: str = ""
    #: Of its MAP.
    digest: str = ""
    #: When it was placed; None: nobody knows, as if at this moment.
    since: datetime | None = None


@dataclass(frozen=True)
class NodeView:
    """One node. Memory in bytes, cpu in thousandths of a core."""

    id: str
    state: NodeState
    #: No heartbeat for some time: nothing new is placed there.
    silent: bool
    kinds: tuple[str, ...]
    labels: Mapping[str, str]
    cpu: int
    memory: int
    gpus: tuple[Gpu, ...]
    #: Short digests of what it holds of MAPs.
    images: tuple[str, ...] = ()
    #: Its pool allows that jobs which ask a share of a GPU share one; else each has its GPU for itself.
    shares: bool = False
    #: By the live placements there.
    held: tuple[Held, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether anything may be placed there now."""
        return self.state is NodeState.READY and not self.silent

    @cached_property
    def runs(self) -> frozenset[str]:
        """Ids of the live placements there."""
        return frozenset(held.run_id for held in self.held)

    @cached_property
    def used_cpu(self) -> int:
        return sum(each.cpu for each in self.held)

    @cached_property
    def used_memory(self) -> int:
        return sum(each.memory for each in self.held)

    @cached_property
    def used_gpus(self) -> tuple[str, ...]:
        """UUIDs, one for each use of a whole GPU."""
        return tuple(uuid for each in self.held if not each.share for uuid in each.gpus)

    @cached_property
    def used_shares(self) -> tuple[tuple[str, int], ...]:
        """UUID and MiB of each use of a part of one."""
        return tuple((uuid, each.share) for each in self.held if each.share for uuid in each.gpus)

    @property
    def free_cpu(self) -> int:
        return self.cpu - self.used_cpu

    @property
    def free_memory(self) -> int:
        return self.memory - self.used_memory

    @property
    def healthy(self) -> list[Gpu]:
        return [gpu for gpu in self.gpus if gpu.health == "ok"]

    @cached_property
    def devices(self) -> Mapping[str, Device]:
        """The healthy GPUs by UUID, those with little memory first: they are given first where several do."""
        known = [(gpu.uuid, device_of(gpu, shared=self.shares)) for gpu in self.healthy]
        return dict(sorted(known, key=lambda item: (item[1].memory, item[1])))

    @cached_property
    def free_mib(self) -> Mapping[str, int]:
        """What can be given yet of each healthy GPU, in MiB; nothing where a job has it for itself."""
        free = {uuid: device.mib for uuid, device in self.devices.items()}
        for uuid, share in self.used_shares:
            if uuid in free:
                free[uuid] -= share
        return {uuid: 0 if uuid in self.used_gpus else max(0, left) for uuid, left in free.items()}

    def suited(self, shape: Shape) -> list[str]:
        """Return the UUIDs of the GPUs that would do, free or not."""
        return [uuid for uuid, device in self.devices.items() if takes(device, shape) < NEVER]

    def free_suited(self, shape: Shape) -> list[str]:
        """Return the UUIDs of the GPUs that would do and have room."""
        return [uuid for uuid, device in self.devices.items() if self.free_mib[uuid] >= takes(device, shape)]

    @property
    def home(self) -> Home:
        return self.kinds, tuple(sorted(self.labels.items()))

    @cached_property
    def room(self) -> Room:
        """What is free, as the board keeps it."""
        return Room(
            standing=SILENT if self.state is NodeState.READY and self.silent else STANDINGS[self.state],
            home=self.home,
            cpu=self.free_cpu,
            memory=self.free_memory,
            gpus=tuple((self.devices[uuid], free) for uuid, free in self.free_mib.items()),
            size=(self.cpu, self.memory, len(self.gpus)),
            used=(self.used_cpu, self.used_memory, len(self.given)),
        )

    def holding(self, *held: Held) -> "NodeView":
        """Return the node with this much more in use."""
        return self._but((*self.held, *held))

    def without(self, held: Held) -> "NodeView":
        """Return the node as it is when a run has ended."""
        return self._but(tuple(each for each in self.held if each is not held))

    def _but(self, held: tuple[Held, ...]) -> "NodeView":
        view = replace(self, held=held)
        vars(view)["devices"] = self.devices  # the same, and dear to find out
        return view

    @property
    def used(self) -> Amount:
        return Amount(cpu=self.used_cpu / MILLI, memory=self.used_memory, gpus=len(self.given))

    @property
    def free(self) -> Amount:
        unused = {gpu.uuid for gpu in self.gpus}.difference(self.given)
        return Amount(cpu=self.free_cpu / MILLI, memory=self.free_memory, gpus=len(unused))

    @property
    def given(self) -> set[str]:
        """The GPUs of which somebody has something."""
        return {*self.used_gpus, *(uuid for uuid, _ in self.used_shares)}


@dataclass(frozen=True)
class Booking:
    """Room of a node that is kept for a job which waits until there is enough of it (`bookings.py`)."""

    entry: Entry
    node: str
    #: UUIDs: nobody else is given any of these, unless he is expected to be gone by `until`.
    gpus: frozenset[str]
    #: Run ids: when these have ended there is enough.
    after: frozenset[str]
    #: When that is expected.
    until: datetime

    @property
    def job_id(self) -> str:
        return self.entry.job_id

    def beside(self, view: NodeView) -> Room:
        """Return what others may have of the node: what is free, and is so yet beside the job and all who stay."""
        shape, ending = self.entry.shape, [each for each in view.held if each.run_id in self.after]
        staying_cpu = view.used_cpu - sum(each.cpu for each in ending)
        staying_memory = view.used_memory - sum(each.memory for each in ending)
        return view.room._replace(
            cpu=max(0, min(view.free_cpu, view.cpu - shape.cpu - staying_cpu)),
            memory=max(0, min(view.free_memory, view.memory - shape.memory - staying_memory)),
            gpus=tuple((view.devices[uuid], 0 if uuid in self.gpus else free) for uuid, free in view.free_mib.items()),
        )


class Boards(NamedTuple):
    """The nodes as arrays."""

    #: With what everybody may have of them.
    open: Board
    #: Those of which something is booked, with all that is free there.
    booked: Board


@dataclass(frozen=True)
class Snapshot:
    """The cluster at one moment."""

    nodes: Mapping[str, NodeView]
    #: Job id -> run ids of its live placements. May be lent: it follows what happens later.
    live: Mapping[str, tuple[str, ...]]
    #: What is mostly asked, against which fragmentation is measured.
    typical: tuple[Typical, ...] = ()
    #: Project -> what its live placements hold. May be lent, too.
    using: Mapping[str, Using] = field(default_factory=dict)
    #: Node -> what is kept of it.
    bookings: Mapping[str, Booking] = field(default_factory=dict)
    #: The same nodes as arrays, lent as well; None: not kept.
    kept: Boards | None = field(default=None, compare=False, repr=False)
    #: The boards are lent as of this edition: at a later one they show another moment.
    edition: int = field(default=0, compare=False, repr=False)

    @cached_property
    def _fresh(self) -> Boards:
        boards = Boards(Board(self.typical), Board(self.typical))
        boards.open.put_all({name: room_of(view, self.bookings.get(name)) for name, view in self.nodes.items()})
        for name, view in self.nodes.items():
            boards.open.hold(name, view.images)
        boards.booked.put_all({name: self.nodes[name].room for name in self.bookings if name in self.nodes})
        return boards

    def boards(self) -> Boards:
        """Return the nodes as arrays: those that are kept, else new ones."""
        return self.kept if self.kept is not None and self.kept.open.edition == self.edition else self._fresh

    @property
    def whole(self) -> Using:
        """What the cluster has."""
        return whole_of(self.boards().open)

    def fragmentation(self, typical: tuple[Typical, ...]) -> float:
        """Return the share of what is free of all GPUs that these tasks cannot use, as the FGD paper counts it."""
        board = Board(typical, together=0.0)
        board.put_all({name: view.room for name, view in self.nodes.items()})
        return board.fragmentation()


def snapshot_of(
    nodes: Iterable[Node],
    placements: Iterable[Placement],
    now: datetime,
    silent_after: timedelta,
    typical: tuple[Typical, ...] = (),
) -> Snapshot:
    """Return the view of these nodes and live placements."""
    held: dict[str, list[Held]] = {}
    live: dict[str, tuple[str, ...]] = {}
    using: dict[str, Using] = {}
    for each in map(held_by, placements):
        live[each.job_id] = (*live.get(each.job_id, ()), each.run_id)
        if each.node is not None:
            held.setdefault(each.node, []).append(each)
    views = {}
    for node in nodes:
        view = view_of(node, now - node.last_seen_at, silent_after)
        views[node.id] = view.holding(*held[node.id]) if node.id in held else view
    for each in (each for there in held.values() for each in there):
        more = using_of(each, views.get(each.node or ""))
        using[each.project] = using.get(each.project, Using()).plus(more)
    return Snapshot(views, live, typical, using)


def room_of(view: NodeView, booking: Booking | None) -> Room:
    """Return what everybody may have of a node."""
    return booking.beside(view) if booking else view.room


def held_by(placement: Placement) -> Held:
    """Return what a live placement holds."""
    asked = placement.resources
    return Held(
        run_id=placement.id,
        job_id=placement.job_id,
        node=placement.node,
        cpu=milli(asked.cpu or 0),
        memory=asked.memory or 0,
        gpus=placement.gpus,
        share=placement.gpu_share,
        project=placement.project,
        digest=placement.request.digest if placement.request else "",
        since=placement.placed_at,
    )


def whole_of(board: Board) -> Using:
    """Return what all nodes of a board have together."""
    cpu, memory, gpus = board.load.capacity
    return Using(cpu, memory, gpus * MILLI)


def using_of(held: Held, view: NodeView | None) -> Using:
    """Return what a placement takes of its project's share; of a node that is not known GPUs count whole."""
    devices = view.devices if view else {}
    gpus = sum(
        -(-MILLI * held.share // mib(devices[uuid].memory)) if held.share and uuid in devices else MILLI
        for uuid in held.gpus
    )
    return Using(held.cpu, held.memory, gpus)


def counts(node: Node, now: datetime) -> bool:
    """Tell whether a node may come back: whether it was not lost for long."""
    return node.state is not NodeState.LOST or now - node.last_seen_at < COUNTS_FOR


def view_of(node: Node, unseen: timedelta, silent_after: timedelta) -> NodeView:
    """Return the view of a node with nothing in use."""
    return NodeView(
        id=node.id,
        state=node.state,
        silent=unseen > silent_after,
        kinds=node.kinds,
        labels=node.labels,
        cpu=int(round(node.capacity.cpu * MILLI, 6)),  # downwards: a node never promises more than it has
        memory=node.capacity.memory,
        gpus=node.gpus,
        images=node.images,
        shares=node.gpu_sharing,
    )
