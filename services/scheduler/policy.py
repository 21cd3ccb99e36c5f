"""Snapshot and waiting jobs in, plan out. Pure.

Each job is tried in order, and one that does not fit now does not keep those behind it from room that it cannot use.
Room only shrinks within a plan, so once a job does not fit, no other of its shape is tried.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence

from gurney.model.job import WaitReason
from services.scheduler import feasible, rank
from services.scheduler.grid import Load
from services.scheduler.order import Entry, Key
from services.scheduler.plan import Blocked, Decision, Plan
from services.scheduler.shape import Shape
from services.scheduler.snapshot import NodeView, Snapshot

Lanes = Mapping[Shape, Sequence[Entry]]


def evaluate(snapshot: Snapshot, lanes: Lanes, chance: rank.Chance | None = None) -> Plan:
    """Place what fits, in order; say of the rest why it waits. `chance` chooses between equal nodes, else their ids."""
    trial = _Trial(snapshot, chance)
    blocked: list[Shape] = []
    held: set[str] = set()
    heads: list[tuple[Key, int, int]] = [(lane[0].key, number, 0) for number, lane in enumerate(lanes.values()) if lane]
    heapq.heapify(heads)
    by_number = list(lanes.values())
    try:
        while heads:
            _, number, place = heapq.heappop(heads)
            entry = by_number[number][place]
            if trial.is_live(entry.job_id):
                held.add(entry.job_id)
            elif not trial.place(entry):
                blocked.append(entry.shape)
                continue
            if place + 1 < len(by_number[number]):
                heapq.heappush(heads, (by_number[number][place + 1].key, number, place + 1))
        load = trial.load
    finally:
        trial.take_back()
    after = trial.after()
    return Plan(tuple(trial.decisions), Blocked(blocked, trial.reasons), frozenset(held), after, load)


class _Trial:
    """The cluster as it becomes while a plan is made. The board is lent: what was tried is taken back in the end."""

    def __init__(self, snapshot: Snapshot, chance: rank.Chance | None) -> None:
        self._snapshot = snapshot
        self._board = snapshot.board()
        self._edition = self._board.edition
        self._chance = chance
        self._changed: dict[str, NodeView] = {}
        self._live: dict[str, tuple[str, ...]] = {}
        self.decisions: list[Decision] = []

    def is_live(self, job_id: str) -> bool:
        return job_id in self._live or job_id in self._snapshot.live

    def place(self, entry: Entry) -> bool:
        """Place a job where it fits best; tells whether it fits."""
        name = rank.best(self._board, entry.shape, self._snapshot.nodes, self._chance)
        if name is None:
            return False
        view = self._changed.get(name) or self._snapshot.nodes[name]
        places, share = self._board.gpus_for(entry.shape, name)
        uuids = list(view.devices)
        decision = Decision(entry, name, tuple(uuids[each] for each in places), share)
        self.decisions.append(decision)
        self._live[entry.job_id] = (decision.run_id,)
        self._changed[name] = view = view.holding(decision.held)
        self._board.put(name, view.room)
        return True

    @property
    def load(self) -> Load:
        return self._board.load

    def reasons(self, shape: Shape) -> tuple[WaitReason, ...]:
        """Return why a shape waits: once the plan is carried out, or as things are if they have changed since."""
        if self._board.edition != self._edition:
            return feasible.counted(self._board, shape)
        self._board.put_all({name: view.room for name, view in self._changed.items()})
        try:
            return feasible.counted(self._board, shape)
        finally:
            self.take_back()

    def take_back(self) -> None:
        self._board.put_all({name: self._snapshot.nodes[name].room for name in self._changed})

    def after(self) -> Snapshot:
        """Return the cluster as it will be."""
        nodes = {**self._snapshot.nodes, **self._changed}
        return Snapshot(nodes, _Both(self._live, self._snapshot.live), self._snapshot.typical)


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
