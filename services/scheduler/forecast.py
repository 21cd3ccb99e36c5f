"""When a job that waits will start, as well as can be told: from how long runs of their MAPs have taken so far. Pure.

Two bounds, of which the later counts: until when the jobs before it have had theirs, all nodes taken as one pool; and
until when one node has room for it, if nobody came. What is free now is of no use to it, or it would not wait.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from gurney.model.run import NodeState
from services.scheduler import feasible
from services.scheduler.order import Entry, Lanes
from services.scheduler.predict import Durations
from services.scheduler.shape import MILLI, Shape
from services.scheduler.shares import Using
from services.scheduler.snapshot import NodeView, Snapshot
from services.scheduler.turns import Rules, ahead

#: Jobs before it that are looked at; more are taken to go on as these do.
LOOKED_AT = 2000


class Live(NamedTuple):
    """A live run: what it holds where, and the seconds that it has left."""

    node: str
    using: Using
    left_s: float


def left_s(expected: float, elapsed: float) -> float:
    """Return the seconds that a run has left; one that is over what was expected is taken to be halfway."""
    return expected - elapsed if elapsed < expected else max(elapsed, 0.0)


def asks(shape: Shape) -> Using:
    """Return what a shape takes of a pool; a share of a GPU counts as the whole."""
    return Using(shape.cpu, shape.memory, shape.gpus * MILLI)


def outlook(
    entry: Entry, lanes: Lanes, snapshot: Snapshot, rules: Rules, live: Iterable[Live]
) -> tuple[int, float | None]:
    """Return the place of a job among those that wait, itself counted, and the seconds until it starts."""
    before = ahead(entry, lanes, rules, snapshot.using, snapshot.whole)
    ready = [view for view in snapshot.nodes.values() if view.state is NodeState.READY and not view.silent]
    able = {view.id: view for view in feasible.passing(ready, entry.shape, feasible.EVER)}
    return 1 + len(before), wait_s(entry, before, live, able, rules.durations)


def wait_s(
    entry: Entry, ahead: Sequence[Entry], live: Iterable[Live], nodes: Mapping[str, NodeView], durations: Durations
) -> float | None:
    """Return the seconds until a job starts on one of these nodes, which could all hold it; None where none can tell.

    `ahead`: the jobs before it, in order.
    """
    there = [each for each in live if each.node in nodes]
    pooled = _pooled(entry, ahead, there, durations)
    alone = _alone(entry.shape, there, nodes)
    return None if pooled is None or alone is None else max(pooled, alone)


def _pooled(entry: Entry, ahead: Sequence[Entry], live: Iterable[Live], durations: Durations) -> float | None:
    ends = [(each.left_s, each.using) for each in live]
    heapq.heapify(ends)
    now, pool = 0.0, Using()
    looked_at = ahead[:LOOKED_AT]
    for each in (*looked_at, entry):
        wanted = asks(each.shape)
        while any(has < wants for has, wants in zip(pool, wanted, strict=True)):
            if not ends:
                return None
            now, more = heapq.heappop(ends)
            pool = pool.plus(more)
        pool = pool.minus(wanted)
        heapq.heappush(ends, (now + durations.expected(each.lane.digest), wanted))
    return now * max(1.0, len(ahead) / LOOKED_AT)


def _alone(shape: Shape, live: Iterable[Live], nodes: Mapping[str, NodeView]) -> float | None:
    """Return when the first of the nodes has room, if nobody else takes it."""
    wanted = asks(shape)
    ends: dict[str, list[Live]] = {}
    for each in live:
        ends.setdefault(each.node, []).append(each)
    found: list[float] = []
    for name, view in nodes.items():
        free = Using(view.free_cpu, view.free_memory, MILLI * (len(view.gpus) - len(view.given)))
        now = 0.0
        for each in sorted(ends.get(name, ()), key=lambda each: each.left_s):
            if all(has >= wants for has, wants in zip(free, wanted, strict=True)):
                break
            now, free = each.left_s, free.plus(each.using)
        if all(has >= wants for has, wants in zip(free, wanted, strict=True)):
            found.append(now)
    return min(found, default=None)
