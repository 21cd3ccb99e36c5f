"""The cluster as it becomes while a plan is made. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gurney.model.job import WaitReason
from services.scheduler import feasible, rank
from services.scheduler.board import Board
from services.scheduler.grid import Load
from services.scheduler.holders import needs
from services.scheduler.lending import Lent
from services.scheduler.order import Entry
from services.scheduler.plan import Decision
from services.scheduler.shape import Shape
from services.scheduler.shares import Using
from services.scheduler.snapshot import Booking, NodeView, Snapshot, room_of, using_of
from services.scheduler.turns import Rules


class Found(NamedTuple):
    """Where a job fits best."""

    decision: Decision
    view: NodeView

    @property
    def takes(self) -> Using:
        return using_of(self.decision.held, self.view)


class Trial:
    """One per plan. The boards are lent: what was tried is taken back in the end."""

    def __init__(self, snapshot: Snapshot, rules: Rules, chance: rank.Chance | None) -> None:
        self._snapshot = snapshot
        self._rules = rules
        self._boards = snapshot.boards()
        self._edition = self._boards.open.edition
        self._chance = chance
        self._lent = Lent(snapshot, self._boards.booked, rules)
        self._changed: dict[str, NodeView] = {}
        self._live: dict[str, tuple[str, ...]] = {}
        self._bookings = snapshot.bookings
        self._claims = {each.job_id: each for each in snapshot.bookings.values()}
        self.decisions: list[Decision] = []

    def __len__(self) -> int:
        """Return how many nodes there are."""
        return len(self._snapshot.nodes)

    def is_live(self, job_id: str) -> bool:
        return job_id in self._live or job_id in self._snapshot.live

    def has_room(self, shape: Shape) -> bool:
        """Tell whether a job of this shape finds room beside what is kept for others."""
        return self._boards.open.has_room(shape)

    def lends(self, shape: Shape) -> bool:
        """Tell whether a job of this shape would find room in what is kept for others, if it were lent to it."""
        return bool(self._lent.to(shape).names)

    def may_borrow(self, shape: Shape, lanes: Iterable[Sequence[Entry]]) -> list[Sequence[Entry]]:
        """Return the lanes of which the first may find room there, as told at a glance."""
        offers = self._lent.to(shape)
        return [lane for lane in lanes if self._lent.may(lane[0], offers)] if offers.names else []

    def claim(self, entry: Entry) -> Found | None:
        """Return what a job has booked; None while there is not enough of it, or where it has booked nothing."""
        booking = self._claims.get(entry.job_id)
        if booking is None or not self.may_claim(booking):
            return None
        return self._found(entry, booking.node, self._boards.booked)

    def may_claim(self, booking: Booking) -> bool:
        """Tell whether there is enough of what is booked; where there is not, there will not be in this plan."""
        return self._boards.booked.price(booking.entry.shape, booking.node) < np.inf

    def find(self, entry: Entry) -> Found | None:
        """Return where a job fits best beside what is kept for others; None where it fits nowhere."""
        name = rank.best(self._boards.open, entry.shape, needs(entry.request.request), self._chance)
        return None if name is None else self._found(entry, name, self._boards.open)

    def borrow(self, entry: Entry) -> Found | None:
        """Return where a job fits in what is kept for others and lent to it."""
        name = self._lent.best(entry)
        return None if name is None else self._found(entry, name, self._boards.booked)

    def _found(self, entry: Entry, name: str, board: Board) -> Found:
        view = self._now(name)
        places, share = board.gpus_for(entry.shape, name)
        uuids = list(view.devices)
        gpus = tuple(uuids[each] for each in places)
        return Found(Decision(entry, name, self._rules.now, gpus, share), view)

    def place(self, found: Found) -> None:
        decision = found.decision
        self.decisions.append(decision)
        self._live[decision.entry.job_id] = (decision.run_id,)
        self._changed[decision.node] = view = found.view.holding(decision.held)
        self._put({decision.node: view})

    def able(self, shape: Shape) -> Iterator[NodeView]:
        """Return the nodes that would have room if nothing were in use, first those with most free GPUs that do."""
        return map(self._now, self._boards.open.able(shape))

    def usual(self, shape: Shape) -> int:
        """Return how many GPUs most of them have that would do."""
        return self._boards.open.usual(shape)

    def view(self, name: str) -> NodeView | None:
        return self._now(name) if name in self._snapshot.nodes else None

    def _now(self, name: str) -> NodeView:
        return self._changed.get(name) or self._snapshot.nodes[name]

    @property
    def load(self) -> Load:
        return self._boards.open.load

    def reasons(self, shape: Shape) -> tuple[WaitReason, ...]:
        """Return why a shape waits: once the plan is carried out, or as things are if they have changed since."""
        if self._boards.open.edition != self._edition:
            return self._reasons(shape)
        self._put(self._changed)
        try:
            return self._reasons(shape)
        finally:
            self.take_back()

    def _reasons(self, shape: Shape) -> tuple[WaitReason, ...]:
        kept = [name for name in self._bookings if self._boards.booked.price(shape, name) < np.inf]
        return feasible.counted(self._boards.open, shape, kept)

    def take_back(self) -> None:
        self._put({name: self._snapshot.nodes[name] for name in self._changed})

    def _put(self, views: Mapping[str, NodeView]) -> None:
        """Have the boards show nodes as they are then."""
        self._boards.open.put_all({name: room_of(view, self._bookings.get(name)) for name, view in views.items()})
        self._boards.booked.put_all({name: view.room for name, view in views.items() if name in self._bookings})

    def after(self, using: Mapping[str, Using], bookings: Mapping[str, Booking]) -> Snapshot:
        """Return the cluster as it will be."""
        nodes = {**self._snapshot.nodes, **self._changed}
        live = _Both(self._live, self._snapshot.live)
        return Snapshot(nodes, live, self._snapshot.typical, using, bookings)


class _Both(Mapping[str, tuple[str, ...]]):
    """The live placements of a plan beside those before it, of which there may be very many."""

    def __init__(self, new: Mapping[str, tuple[str, ...]], old: Mapping[str, tuple[str, ...]]) -> None:
        self._new, self._old = new, old

    def __getitem__(self, job_id: str) -> tuple[str, ...]:
        return self._new[job_id] if job_id in self._new else self._old[job_id]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._old, **self._new})

    def __len__(self) -> int:
        return len({**self._old, **self._new})
