"""When a job that waits will start, as well as can be told: from how long runs of their MAPs have taken so far. Pure.

Two bounds, of which the later counts: until when the jobs before it have had theirs, all nodes taken as one pool; and
until when one node has room for it, if nobody came. What is free now is of no use to it, or it would not wait.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import NamedTuple

from gurney.model.run import NodeState
from services.scheduler import feasible
from services.scheduler.order import Entry, Lanes
from services.scheduler.predict import Durations
from services.scheduler.shape import MILLI, NEVER, Device, Shape, takes
from services.scheduler.shares import Using
from services.scheduler.snapshot import NodeView, Snapshot
from services.scheduler.turns import Rules, ahead

#: Who goes before it when it starts is not who goes before it now: it rises. So often the time is halved in which the
#: order of then would let it start.
STEPS = 8
#: Of the jobs before it that ask more, one of so many finds room before it does: as replays of bursts had it.
BETWEEN = 5
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


def asks(shape: Shape, device: Device | None) -> Using:
    """Return what a shape takes, of GPUs such as this one."""
    part = MILLI
    if device and shape.gpu_share and (mib := takes(device, shape)) < NEVER:
        part = -(-MILLI * mib // device.mib)
    return Using(shape.cpu, shape.memory, shape.gpus * part)


def outlook(
    entry: Entry, lanes: Lanes, snapshot: Snapshot, rules: Rules, live: Iterable[Live]
) -> tuple[int, float | None]:
    """Return the place of a job among those that wait, itself counted, and the seconds until it starts."""
    place = 1 + len(ahead(entry, lanes, rules, snapshot.using, snapshot.whole))
    ready = [view for view in snapshot.nodes.values() if view.state is NodeState.READY and not view.silent]
    able = {view.id: view for view in feasible.passing(ready, entry.shape, feasible.EVER)}
    live, least, most = list(live), 0.0, None
    for _ in range(STEPS):
        tried = 0.0 if most is None else (least + most) / 2
        then = replace(rules, now=rules.now + timedelta(seconds=tried))
        found = wait_s(entry, ahead(entry, lanes, then, snapshot.using, snapshot.whole), live, able, rules.durations)
        if found is None:
            return place, None
        if most is None or found <= tried:
            most = found if most is None else tried
        else:
            least = tried
    return place, most


def wait_s(
    entry: Entry, ahead: Sequence[Entry], live: Iterable[Live], nodes: Mapping[str, NodeView], durations: Durations
) -> float | None:
    """Return the seconds until a job starts on one of these nodes, which could all hold it; None where none can tell.

    `ahead`: the jobs before it, in order.
    """
    there = [each for each in live if each.node in nodes]
    device = max((each for view in nodes.values() for each in view.devices.values()), default=None)
    pooled = _pooled(entry, ahead, there, durations, device)
    alone = _alone(asks(entry.shape, device), there, nodes)
    return None if pooled is None or alone is None else max(pooled, alone)


def _pooled(
    entry: Entry, before: Sequence[Entry], live: Iterable[Live], durations: Durations, device: Device | None
) -> float | None:
    """Return when those before it have had theirs. Of those that ask more most find no room before it does."""
    mine = asks(entry.shape, device)
    alike = {each.job_id for each in before if _within(asks(each.shape, device), mine)}
    larger = [each.job_id for each in before if each.job_id not in alike and each.shape.gpus <= entry.shape.gpus]
    alike.update(larger[::BETWEEN])
    ahead = [each for each in before if each.job_id in alike]
    ends = [(each.left_s, each.using) for each in live]
    heapq.heapify(ends)
    now, pool = 0.0, Using()
    looked_at = ahead[:LOOKED_AT]
    for each in (*looked_at, entry):
        wanted = asks(each.shape, device)
        while not _within(wanted, pool):
            if not ends:
                return None
            now, more = heapq.heappop(ends)
            pool = pool.plus(more)
        pool = pool.minus(wanted)
        heapq.heappush(ends, (now + durations.expected(each.lane.digest), wanted))
    return now * max(1.0, len(ahead) / LOOKED_AT)


def _alone(wanted: Using, live: Iterable[Live], nodes: Mapping[str, NodeView]) -> float | None:
    """Return when the first of the nodes has room, if nobody else takes it."""
    ends: dict[str, list[Live]] = {}
    for each in live:
        ends.setdefault(each.node, []).append(each)
    found: list[float] = []
    for name, view in nodes.items():
        free = Using(view.free_cpu, view.free_memory, MILLI * (len(view.gpus) - len(view.given)))
        now = 0.0
        for each in sorted(ends.get(name, ()), key=lambda each: each.left_s):
            if _within(wanted, free):
                break
            now, free = each.left_s, free.plus(each.using)
        if _within(wanted, free):
            found.append(now)
    return min(found, default=None)


def _within(wanted: Using, room: Using) -> bool:
    return all(wants <= has for wants, has in zip(wanted, room, strict=True))
