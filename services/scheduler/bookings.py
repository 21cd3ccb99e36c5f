"""Room that is kept for jobs which would never find it while others take what becomes free bit by bit. Pure.

A job that asks half of the GPUs of a usual node or more, or that has waited for a day, books the node that is expected
to have room for it first. One that asks fewer finds them side by side soon enough: what is kept for such costs the
others more than it gives. Others may use what is kept only if they are expected to be gone by then, as in EASY
backfilling (Lifka, "The ANL/IBM SP scheduling system", JSSPP 1995); here several jobs book at a time, each a node.

Who has booked keeps his node for as long as things go as expected there. When one of the runs that he waits for has
ended or is late, he books where he is expected to start first as things are then: mostly the same node again.
"""

import heapq
from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta
from itertools import islice, takewhile

from services.scheduler.order import Entry, Shapes
from services.scheduler.predict import opening
from services.scheduler.shares import asks
from services.scheduler.snapshot import Booking
from services.scheduler.trial import Trial
from services.scheduler.turns import OVERDUE_AFTER, Line, Place, Rules

#: Jobs are wide that ask several GPUs, and at least one of so many that the usual node for them has.
WIDE = 2
#: One of so many nodes is booked at most; of fewer, one; and never more than so many.
NODES, MOST = 6, 48
#: So many nodes are looked at for a booking: those that have most of it free.
LOOKED_AT = 32
#: So many bookings are made by a plan; those behind them come in the next ones.
FRESH = 2
#: A booking lasts at least so long.
SHORTEST_S = 1.0


def booked(
    waiting: Shapes,
    before: Collection[Booking],
    cluster: Trial,
    line: Line,
    rules: Rules,
) -> dict[str, Booking]:
    """Return what is kept of which nodes.

    `waiting` finds no room; `before`: what was kept until now, for those who wait still.
    """
    most = min(MOST, max(1, len(cluster) // NODES))
    rank, had = line.rank, {each.job_id for each in before}
    lasting = {each.job_id: each for each in before if _lasts(each, cluster, rules)}
    kept = {each.node: rules.level(each.entry) for each in lasting.values()}
    found: dict[str, Booking] = {}
    fresh = 0

    def order(entry: Entry) -> tuple[int, bool, Place]:
        place = rank(entry)
        return place[0], entry.job_id not in had, place

    lowest = max(kept.values(), default=-1)
    rivals = (
        lane
        for lane in _who_book(waiting, most, rules, cluster)
        if len(lasting) < most or rules.level(lane[0]) < lowest
    )
    queues = [*([each.entry] for each in before), *rivals]
    turns = [(order(queue[0]), number, 0) for number, queue in enumerate(queues)]
    heapq.heapify(turns)
    while turns and len(found) < most:
        _, number, place = heapq.heappop(turns)
        entry = queues[number][place]
        if not cluster.is_live(entry.job_id) and (entry.job_id not in had or number < len(before)):
            is_new = entry.job_id not in had
            if line.over_quota(entry.lane.project, asks(entry.shape, None)) or (is_new and fresh == FRESH):
                continue  # nor do those behind it in the queue
            booking = lasting.get(entry.job_id)
            if booking is None or booking.node in found:  # somebody of a higher priority has it now
                level = rules.level(entry)
                taken = {name for name, other in kept.items() if other <= level} - {booking.node if booking else ""}
                booking = _book(entry, found.keys() | taken, cluster, rules)
            if booking is None:
                continue
            fresh += is_new
            found[booking.node] = booking
        if place + 1 < len(queues[number]):
            heapq.heappush(turns, (order(queues[number][place + 1]), number, place + 1))
    return found


def _who_book(waiting: Shapes, most: int, rules: Rules, cluster: Trial) -> Iterator[Sequence[Entry]]:
    """Return the lanes of wide jobs, and the first of others: those that have waited too long."""
    overdue = rules.now - OVERDUE_AFTER
    for shape, lanes in waiting.items():
        if shape.gpus > 1 and WIDE * shape.gpus >= cluster.usual(shape):
            yield from lanes.values()
        else:
            late = (lane for lane in lanes.values() if lane[0].key[0] <= overdue)
            yield from ([*islice(takewhile(lambda each: each.key[0] <= overdue, lane), most)] for lane in late)


def _lasts(booking: Booking, cluster: Trial, rules: Rules) -> bool:
    """Tell whether things are as they were expected to be when it was booked: nobody has ended, or should have."""
    view = cluster.view(booking.node)
    if view is None or not view.ready or not rules.now < booking.until:
        return False
    return booking.gpus <= view.devices.keys() and booking.after <= view.runs


def _book(entry: Entry, taken: Collection[str], cluster: Trial, rules: Rules) -> Booking | None:
    """Return the booking that comes first; of those that come together, the one that waits for the fewest runs."""
    able = (view for view in cluster.able(entry.shape) if view.id not in taken)
    openings = [(opening(view, entry.shape, rules.durations, rules.now), view) for view in islice(able, LOOKED_AT)]
    found = [
        (view.id in entry.shape.avoid, each.in_s, len(each.after), len(view.devices), view.id, each)
        for each, view in openings
        if each
    ]
    if not found:
        return None
    _, in_s, _, _, node, best = min(found)
    return Booking(
        entry=entry,
        node=node,
        gpus=frozenset(best.gpus),
        after=frozenset(best.after),
        until=rules.now + timedelta(seconds=max(SHORTEST_S, in_s)),
    )
