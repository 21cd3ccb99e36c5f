"""Snapshot and waiting jobs in, plan out. Pure.

Each job is tried in order, and one that does not fit now does not keep those behind it from room that it cannot use.
Room only shrinks within a plan, so once a job does not fit, no other of its shape is tried.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from gurney.model.job import WaitReason
from services.scheduler import feasible, rank
from services.scheduler.grid import Load
from services.scheduler.holders import needs
from services.scheduler.order import Entry, Lane, Shapes
from services.scheduler.plan import Blocked, Decision, Plan
from services.scheduler.shape import Shape
from services.scheduler.shares import Using
from services.scheduler.snapshot import NodeView, Snapshot, using_of
from services.scheduler.turns import Line, Rules


def evaluate(snapshot: Snapshot, waiting: Shapes, rules: Rules, chance: rank.Chance | None = None) -> Plan:
    """Place what fits, in order; say of the rest why it waits. `chance` chooses between equal nodes, else their ids."""
    trial = _Trial(snapshot, chance)
    full = {shape for shape in waiting if not trial.has_room(shape)}
    over_quota: dict[Lane, WaitReason] = {}
    heads = [lane for shape, lanes in waiting.items() if shape not in full for lane in lanes.values()]
    line = Line(heads, rules, snapshot.using, snapshot.whole)
    try:
        for entry in line:
            project = entry.lane.project
            if entry.shape in full:
                continue
            if trial.is_live(entry.job_id):
                line.go_on()
                continue
            if (found := trial.find(entry)) is None:
                full.add(entry.shape)
            elif reason := rules.over_quota(project, line.using(project).plus(found.takes)):
                over_quota[entry.lane] = reason
            else:
                trial.place(found)
                line.give(project, found.takes)
                line.go_on()
        load = trial.load
    finally:
        trial.take_back()
    after = trial.after(line.projects)
    return Plan(tuple(trial.decisions), Blocked(full, trial.reasons), over_quota, snapshot.live, after, load)


class _Found(NamedTuple):
    """Where a job fits best."""

    decision: Decision
    view: NodeView

    @property
    def takes(self) -> Using:
        return using_of(self.decision.held, self.view)


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

    def has_room(self, shape: Shape) -> bool:
        """Tell whether a job of this shape finds room."""
        return bool(self._board.scores(shape).min(initial=np.inf) < np.inf)

    def find(self, entry: Entry) -> _Found | None:
        """Return where a job fits best; None where it fits nowhere."""
        name = rank.best(self._board, entry.shape, needs(entry.request.request), self._chance)
        if name is None:
            return None
        view = self._changed.get(name) or self._snapshot.nodes[name]
        places, share = self._board.gpus_for(entry.shape, name)
        uuids = list(view.devices)
        return _Found(Decision(entry, name, tuple(uuids[each] for each in places), share), view)

    def place(self, found: _Found) -> None:
        decision = found.decision
        self.decisions.append(decision)
        self._live[decision.entry.job_id] = (decision.run_id,)
        self._changed[decision.node] = view = found.view.holding(decision.held)
        self._board.put(decision.node, view.room)

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

    def after(self, using: Mapping[str, Using]) -> Snapshot:
        """Return the cluster as it will be."""
        nodes = {**self._snapshot.nodes, **self._changed}
        return Snapshot(nodes, _Both(self._live, self._snapshot.live), self._snapshot.typical, using)


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
