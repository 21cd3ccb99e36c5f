"""When a job that waits will start, as well as can be told: from how long runs of their MAPs have taken so far. Pure.

Two bounds, of which the later counts: until when the jobs before it have had theirs, all nodes taken as one pool; and
until when one node has room for it, if nobody came. What is free now is of no use to it, or it would not wait. Who has
booked room is told when that is expected.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import islice

from services.scheduler import feasible
from services.scheduler.order import Entry, Lanes
from services.scheduler.predict import Durations, opening
from services.scheduler.shape import Device, Shape
from services.scheduler.shares import Using, asks
from services.scheduler.snapshot import NodeView, Snapshot, using_of
from services.scheduler.turns import Rules, ahead

#: Who goes before it when it starts is not who goes before it now: it rises. So often the time is halved in which the
#: order of then would let it start.
STEPS = 8
#: Of the jobs before it that ask more, one of so many finds room before it does: as replays of bursts had it.
BETWEEN = 5
#: Jobs before it that are looked at; more are taken to go on as these do.
LOOKED_AT = 500


def outlook(entry: Entry, lanes: Lanes, snapshot: Snapshot, rules: Rules) -> tuple[int, float | None]:
    """Return the place of a job among those that wait, itself counted, and the seconds until it starts."""
    rank = rules.ranking(snapshot.using, snapshot.whole)
    before = ahead(entry, lanes.values(), rank)
    count = sum(map(len, before))
    if booking := next((each for each in snapshot.bookings.values() if each.entry is entry), None):
        return 1 + count, max(0.0, (booking.until - rules.now).total_seconds())
    first = list(islice(heapq.merge(*before, key=rank), LOOKED_AT))
    ready = [view for view in snapshot.nodes.values() if view.ready]
    able = feasible.passing(ready, entry.shape, feasible.EVER)
    alone, least, most = _alone(entry.shape, able, rules), 0.0, None
    ends = [(rules.durations.left_s(held, rules.now), using_of(held, view)) for view in able for held in view.held]
    device = max((each for view in able for each in view.devices.values()), default=None)
    for _ in range(STEPS):
        tried = 0.0 if most is None else (least + most) / 2
        then = replace(rules, now=rules.now + timedelta(seconds=tried)).ranking(snapshot.using, snapshot.whole)
        mine = then(entry)
        pooled = _pooled(entry, [each for each in first if then(each) < mine], ends, rules.durations, device)
        if pooled is None or alone is None:
            return 1 + count, None
        found = max(pooled, alone)
        if most is None or found <= tried:
            most = found if most is None else tried
        else:
            least = tried
    return 1 + count, None if most is None else most * max(1.0, count / LOOKED_AT)


def _pooled(
    entry: Entry,
    before: Sequence[Entry],
    ends: Iterable[tuple[float, Using]],
    durations: Durations,
    device: Device | None,
) -> float | None:
    """Return when those before it have had theirs. Of those that ask more most find no room before it does."""
    mine = asks(entry.shape, device)
    alike = {each.job_id for each in before if _within(asks(each.shape, device), mine)}
    larger = [each.job_id for each in before if each.job_id not in alike and each.shape.gpus <= entry.shape.gpus]
    alike.update(larger[::BETWEEN])
    some = [each for each in before if each.job_id in alike]
    ends = list(ends)
    heapq.heapify(ends)
    now, pool = 0.0, Using()
    for each in (*some, entry):
        wanted = asks(each.shape, device)
        while not _within(wanted, pool):
            if not ends:
                return None
            now, more = heapq.heappop(ends)
            pool = pool.plus(more)
        pool = pool.minus(wanted)
        heapq.heappush(ends, (now + durations.expected(each.lane.digest), wanted))
    return now


def _alone(shape: Shape, nodes: Iterable[NodeView], rules: Rules) -> float | None:
    """Return when the first of the nodes has room, if nobody else takes it."""
    found = [opening(view, shape, rules.durations, rules.now) for view in nodes]
    return min((each.in_s for each in found if each), default=None)


def _within(wanted: Using, room: Using) -> bool:
    return all(wants <= has for wants, has in zip(wanted, room, strict=True))
