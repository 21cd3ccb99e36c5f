"""What keeps a job from starting: what is in the way on the node that is nearest to having room for it. Pure.

Reasons count which filter refuses each node first, and behind that one may be others. This is all of it, on one node:
its state, the runs that would have to end, and the jobs that go first and would take what becomes free.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from gurney.model import job as model
from gurney.model.run import NodeState
from services.scheduler import feasible
from services.scheduler.board import Board
from services.scheduler.grid import DRAINING, LOST, NOWHERE, SILENT
from services.scheduler.order import Entry, Lanes
from services.scheduler.shape import Shape
from services.scheduler.shares import Using, asks
from services.scheduler.snapshot import Booking, Held, NodeView, Snapshot, using_of
from services.scheduler.turns import Line, Rules

#: Nodes at which is looked closely: those that lack least.
CLOSE = 16
#: Jobs before it that are named: with more of them it is of no use to know each.
LONGEST = 500
#: Of these, so many are told.
NAMED = 10
#: Filters that the ends of runs let a node pass.
_BUSY = tuple(each for each in feasible.NOW if each.code.endswith("_busy"))


@dataclass(frozen=True, slots=True)
class Blocker:
    """All of it is in the way: without it the job would start."""

    node: str
    #: Why the node takes no jobs: `lost`, `silent`, `draining`; empty: it does.
    standing: tuple[str, ...]
    #: Live runs: they hold what the job needs there, or the quota of its project, or are its own earlier attempt.
    runs: tuple[str, ...]
    #: Jobs that go before it and could take that room, in order.
    jobs: tuple[str, ...]

    def told(self, *, names: bool) -> model.Blocker:
        """Return it as the job's status has it; `names`: with the ids of runs and jobs, which may be of others."""
        said = [
            *(f"it is {each}" for each in self.standing),
            *([f"{len(self.runs)} live runs would have to end"] if self.runs else ()),
            *([f"{len(self.jobs)} jobs go first and would take the room"] if self.jobs else ()),
        ]
        return model.Blocker(
            node=self.node,
            standing=self.standing,
            runs=len(self.runs),
            jobs=len(self.jobs),
            run_ids=self.runs if names else (),
            job_ids=self.jobs[:NAMED] if names else (),
            message=f"nearest to having room is {self.node}: {'; '.join(said) or 'nothing is in the way'}",
        )


class _Way(NamedTuple):
    """What would make room on one node; the least goes first."""

    is_lost: bool
    is_silent: bool
    is_draining: bool
    is_booked: bool
    runs: int
    node: str
    ended: tuple[Held, ...]


def blocker(entry: Entry, lanes: Lanes, snapshot: Snapshot, rules: Rules) -> Blocker | None:
    """Return what keeps a job from starting; None where no node that is known, or not its quota, could hold it."""
    nodes, bookings = snapshot.nodes, snapshot.bookings
    runs = [held for view in nodes.values() for held in view.held]
    own = [held for held in runs if held.job_id == entry.job_id]
    close = _closest(snapshot.boards().open, entry.shape)
    ways = [way for name in close if (way := _way(nodes[name], entry, own, bookings.get(name)))]
    if not ways:
        return None
    way = min(ways)
    if rules.over_quota(entry.lane.project, _asks(entry, nodes[way.node])):
        return None
    ended = [*own, *way.ended]
    left = [held for held in runs if held not in ended]
    ended += _beyond_quota(entry, nodes[way.node], left, _without(ended, snapshot), rules)
    emptier = {
        name: replace(nodes[name], held=tuple(held for held in nodes[name].held if held not in ended))
        for name in {held.node or "" for held in ended} & nodes.keys()
    }
    race = _Race(emptier.pop(way.node, nodes[way.node]), emptier.values(), snapshot)
    jobs = [bookings[way.node].job_id] if way.is_booked else []
    winners = race.winners(entry, lanes, rules, _without(ended, snapshot).using)
    jobs += [each.job_id for each in winners if each.job_id not in jobs]
    standing = [name.removeprefix("is_") for name, is_so in zip(way._fields, way[:3], strict=False) if is_so]
    runs_to_end = tuple(held.run_id for held in ended)
    return Blocker(way.node, tuple(standing), runs_to_end, tuple(jobs))


def _standing(view: NodeView) -> tuple[bool, bool, bool]:
    return view.state is NodeState.LOST, view.silent, view.state is NodeState.DRAINING


def _closest(board: Board, shape: Shape) -> list[str]:
    """Return the nodes that could hold a shape and lack least of it, each thing as a part of what is needed."""
    able = board.standing != NOWHERE
    for each in feasible.EVER:
        able &= each.rows_have(board, shape) >= each.needs(shape)
    rows = np.flatnonzero(able)
    lack = np.zeros(len(rows))
    for each in _BUSY:
        if needs := each.needs(shape):
            lack += np.maximum(0, needs - each.rows_have(board, shape)[rows]) / needs
    names = np.array([board.names[row] for row in rows], dtype=np.str_)
    standing = [board.standing[rows] == each for each in (DRAINING, SILENT, LOST)]
    closest: list[str] = names[np.lexsort((names, lack, *standing))[:CLOSE]].tolist()
    return closest


def _fits(view: NodeView, entry: Entry, filters: Sequence[feasible.Filter] = _BUSY) -> bool:
    return bool(feasible.passing((view,), entry.shape, filters))


def _way(view: NodeView, entry: Entry, own: Collection[Held], booking: Booking | None) -> _Way | None:
    """Return which runs would have to end for the job to find room on a node; None: not even all would do.

    Those are kept that can be, once the small ones first and once the large ones; who keeps more of them has it.
    """
    bare, others = replace(view, held=()), [held for held in view.held if held not in own]
    is_booked = booking is not None and booking.job_id != entry.job_id
    if not _fits(bare, entry):
        return None
    found = []
    for sign in (1, -1):
        kept, ended = bare, []
        for held in sorted(others, key=lambda held: (sign * len(held.gpus), sign * held.cpu, sign * held.memory)):
            if _fits(with_it := kept.holding(held), entry):
                kept = with_it
            else:
                ended.append(held)
        found.append(_Way(*_standing(view), is_booked, len(ended), view.id, tuple(ended)))
    return min(found)


def _takes(held: Held, snapshot: Snapshot) -> Using:
    return using_of(held, snapshot.nodes.get(held.node or ""))


def _without(ended: Iterable[Held], snapshot: Snapshot) -> Snapshot:
    """Return the snapshot with what projects hold when these runs are over."""
    using = dict(snapshot.using)
    for held in ended:
        using[held.project] = using.get(held.project, Using()).minus(_takes(held, snapshot))
    return replace(snapshot, using=using)


def _asks(entry: Entry, view: NodeView) -> Using:
    return asks(entry.shape, next((view.devices[uuid] for uuid in view.suited(entry.shape)), None))


def _beyond_quota(entry: Entry, view: NodeView, live: Iterable[Held], snapshot: Snapshot, rules: Rules) -> list[Held]:
    """Return the runs of the job's project, the large ones first, that keep it from what its quota lets it have."""
    project, ended = entry.lane.project, []
    wanted = snapshot.using.get(project, Using()).plus(_asks(entry, view))
    mine = (held for held in live if held.project == project)
    for held in sorted(mine, key=lambda held: (-len(held.gpus), -held.cpu, -held.memory, held.run_id)):
        if not rules.over_quota(project, wanted):
            break
        wanted = wanted.minus(_takes(held, snapshot))
        ended.append(held)
    return ended


class _Race:
    """Who goes first takes what is left of one node's room, and of the quota of its project wherever it finds room."""

    def __init__(self, room: NodeView, emptier: Iterable[NodeView], snapshot: Snapshot) -> None:
        """`emptier`: other nodes with more room than the snapshot has."""
        self._room = replace(room, state=NodeState.READY, silent=False)
        self._board = Snapshot({room.id: self._room}, {}, snapshot.typical).boards().open
        self._others = (Snapshot({view.id: view for view in emptier}, {}).boards().open, snapshot.boards().open)
        self._whole, self._live = snapshot.whole, snapshot.live

    def winners(self, entry: Entry, lanes: Lanes, rules: Rules, using: Mapping[str, Using]) -> list[Entry]:
        """Return the jobs that go before this one and would not leave it enough, in order, of very many the first."""
        mine, asked = entry.lane.project, _asks(entry, self._room)
        line = Line([lanes.values()], rules, using, self._whole)
        found: list[Entry] = []
        for each in line:
            if each is entry or len(found) == LONGEST:
                break
            if each.job_id in self._live:
                line.go_on()
                continue
            project, takes = each.lane.project, _asks(each, self._room)
            room = None if line.over_quota(project, takes) else self._with(each)
            if room is not None:
                if _fits(room, entry) and not (project == mine and line.over_quota(mine, takes.plus(asked))):
                    self._room = room
                    self._board.put(room.id, room.room)
                    line.give(project, takes)
                else:
                    found.append(each)
            if room is not None or each.lane == entry.lane:
                line.go_on()
        return found

    def _with(self, entry: Entry) -> NodeView | None:
        """Return the node as it is when a job has started, there or elsewhere; None: it finds no room."""
        shape, name = entry.shape, self._room.id
        if not self._board.has_room(shape):
            return self._room if any(board.has_room(shape) for board in self._others) else None
        places, share = self._board.gpus_for(shape, name)
        uuids = list(self._room.devices)
        gpus = tuple(uuids[each] for each in places)
        return self._room.holding(Held("", entry.job_id, name, shape.cpu, shape.memory, gpus, share))
