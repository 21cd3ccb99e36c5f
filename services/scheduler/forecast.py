"""When a job that waits will start, as well as can be told: what comes of the line if it is rehearsed. Pure.

Runs end when earlier ones of their MAP let expect, and whose turn it is then of those that wait takes what became
free, whether that is before the job now or behind it: projects that are given something come later, and short runs
rise. Nobody comes meanwhile, and no room is kept but for a job that has booked: of that it is told when it is expected.
"""

import heapq
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from services.scheduler.grid import Home, runs
from services.scheduler.order import Entry, Lanes
from services.scheduler.predict import opening
from services.scheduler.shape import Device, Shape, takes
from services.scheduler.shares import Using
from services.scheduler.snapshot import Held, NodeView, Snapshot, using_of
from services.scheduler.turns import OVERDUE, Rules, ahead, urgency

#: Ends of runs that are rehearsed; from then on the line is taken to go on as it did.
REHEARSED = 500
#: Then so many nodes are looked at for one that has room for it: those that have most of it free.
LOOKED_AT = 32

Numbers = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


def outlook(entry: Entry, lanes: Lanes, snapshot: Snapshot, rules: Rules) -> tuple[int, float | None]:
    """Return the place of a job among `lanes`, where it is one, itself counted, and the seconds until it starts."""
    place = 1 + sum(map(len, ahead(entry, lanes.values(), rules.ranking(snapshot.using, snapshot.whole))))
    if booking := next((each for each in snapshot.bookings.values() if each.entry is entry), None):
        return place, max(0.0, (booking.until - rules.now).total_seconds())
    return place, _Rehearsal(lanes, snapshot, rules).starts(entry, place)


class _Rehearsal:
    """The nodes, and the line as arrays: a row for each lane, of the job of it whose turn is next."""

    def __init__(self, lanes: Lanes, snapshot: Snapshot, rules: Rules) -> None:
        self._snapshot, self._rules, self._whole = snapshot, rules, snapshot.whole
        self._nodes = {view.id: view for view in snapshot.nodes.values() if view.ready}
        self._using = dict(snapshot.using)
        self._lanes, self._next = list(lanes.items()), [0] * len(lanes)
        self._shapes = list(dict.fromkeys(lane.shape for lane in lanes))
        number = {shape: number for number, shape in enumerate(self._shapes)}
        self._shape = np.array([number[lane.shape] for lane in lanes], dtype=np.intp)
        asked = [(shape.cpu, shape.memory, shape.gpus) for shape in self._shapes]
        self._cpu, self._memory, self._gpus = np.array(asked, dtype=np.int64).reshape(-1, 3).T
        self._takes: dict[Device, Numbers] = {}
        self._runs: dict[Home, Mask] = {}
        self._left = np.ones(len(lanes), dtype=np.bool_)
        #: Rows whose project's quota has refused what they ask, until a run of it ends.
        self._over = np.zeros(len(lanes), dtype=np.bool_)
        self._projects = {project: number for number, project in enumerate({lane.project for lane in lanes})}
        self._project = np.array([self._projects[lane.project] for lane in lanes], dtype=np.intp)
        self._share = np.array([self._share_of(project) for project in self._projects])
        self._run_s = np.array([rules.run_s(lane) for lane in lanes])
        self._level = np.zeros(len(lanes), dtype=np.int64)
        self._waited = np.zeros(len(lanes))
        for row in range(len(lanes)):
            self._look_at(row)

    def starts(self, entry: Entry, place: int) -> float | None:
        """Return the seconds until a job starts; None where that cannot be told, or never."""
        views, durations = self._nodes.values(), self._rules.durations
        ends = [(durations.left_s(held, self._rules.now), held.run_id, held) for view in views for held in view.held]
        heapq.heapify(ends)
        in_s, started, ended = 0.0, 0, 0
        while ended < REHEARSED:
            if not ends:
                return None
            in_s, freed = ends[0][0], set()
            while ends and ends[0][0] == in_s and ended < REHEARSED:
                freed.add(self._end(heapq.heappop(ends)[2]))
                ended += 1
            for each, held in (begun for node in sorted(freed) for begun in self._begun(node, in_s)):
                if each is entry:
                    return in_s
                started += 1
                heapq.heappush(ends, (in_s + durations.expected(held.digest), each.job_id, held))
        started += sum(each[0] == in_s for each in ends)  # who goes then, too, and was not rehearsed
        alone = self._alone(entry.shape)
        return None if alone is None else max(alone, in_s * max(1.0, place / max(1, started)))

    def _begun(self, node: str, in_s: float) -> Iterator[tuple[Entry, Held]]:
        """Place on a node who finds room there, in order."""
        fits = self._fitting(self._nodes[node])
        while (row := self._turn(fits, in_s)) is not None:
            first = self._head(row)
            if held := self._begin(first, self._nodes[node]):
                yield first, held
                self._go_on(row)
                fits &= self._fitting(self._nodes[node])
            else:
                self._over |= (self._project == self._project[row]) & (self._shape == self._shape[row])
                fits &= ~self._over

    def _alone(self, shape: Shape) -> float | None:
        """Return when the first of the nodes has room, if nobody else takes it."""
        able = islice(self._snapshot.boards().open.able(shape), LOOKED_AT)
        views = [self._snapshot.nodes[name] for name in able]
        found = [opening(view, shape, self._rules.durations, self._rules.now) for view in views]
        return min((each.in_s for each in found if each), default=None)

    def _fitting(self, view: NodeView) -> Mask:
        """Tell for which rows a node has room."""
        home = view.home
        if home not in self._runs:
            self._runs[home] = np.array([runs(home, shape) for shape in self._shapes], dtype=np.bool_)
        free = [self._takes_of(view.devices[uuid]) <= mib for uuid, mib in view.free_mib.items() if mib]
        fits = self._runs[home] & (self._cpu <= view.free_cpu) & (self._memory <= view.free_memory)
        fits &= self._gpus <= np.sum(free, axis=0, dtype=np.int64)
        return self._left & ~self._over & fits[self._shape]

    def _takes_of(self, device: Device) -> Numbers:
        if device not in self._takes:
            known = [takes(device, shape) for shape in self._shapes]
            self._takes[device] = np.array(known, dtype=np.int64)
        return self._takes[device]

    def _turn(self, fits: Mask, in_s: float) -> int | None:
        """Return the row whose turn it is of some, as `Rules` has it."""
        rows = np.flatnonzero(fits)
        if not len(rows):
            return None
        rows = rows[self._level[rows] == self._level[rows].min()]
        waited = self._waited[rows] + in_s
        if self._level[rows[0]] > OVERDUE:
            share = self._share[self._project[rows]]
            waited = np.where(share == share.min(), urgency(np.maximum(0.0, waited), self._run_s[rows]), -np.inf)
        alike: list[int] = rows[waited == waited.max()].tolist()
        return min(alike, key=lambda row: self._head(row).key)

    def _head(self, row: int) -> Entry:
        return self._lanes[row][1][self._next[row]]

    def _look_at(self, row: int) -> None:
        """Have a row show the job whose turn is next."""
        entry = self._head(row)
        self._level[row] = self._rules.level(entry)
        self._waited[row] = (self._rules.now - entry.request.created_at).total_seconds()

    def _go_on(self, row: int) -> None:
        self._next[row] += 1
        self._left[row] = self._next[row] < len(self._lanes[row][1])
        if self._left[row]:
            self._look_at(row)

    def _begin(self, entry: Entry, view: NodeView) -> Held | None:
        """Place a job on a node that has room; None: its project's quota does not let it have that."""
        shape, lane = entry.shape, entry.lane
        free = sorted(view.free_suited(shape), key=lambda uuid: view.free_mib[uuid])[: shape.gpus]
        part = takes(view.devices[free[0]], shape) if free else 0
        share = part if shape.gpu_share and part < view.devices[free[0]].mib else 0
        held = Held("", entry.job_id, view.id, shape.cpu, shape.memory, tuple(free), share, lane.project, lane.digest)
        using = self._using.get(lane.project, Using()).plus(using_of(held, view))
        if self._rules.over_quota(lane.project, using):
            return None
        self._nodes[view.id] = view.holding(held)
        self._use(lane.project, using)
        return held

    def _end(self, held: Held) -> str:
        """Take a run from its node; returns which that is."""
        view = self._nodes[held.node or ""]
        self._nodes[view.id] = view.without(held)
        self._use(held.project, self._using.get(held.project, Using()).minus(using_of(held, view)))
        if held.project in self._projects:
            self._over &= self._project != self._projects[held.project]
        return view.id

    def _use(self, project: str, using: Using) -> None:
        self._using[project] = using
        if project in self._projects:
            self._share[self._projects[project]] = self._share_of(project)

    def _share_of(self, project: str) -> float:
        return self._rules.had.get(project, 0.0) + self._using.get(project, Using()).share_of(self._whole)
