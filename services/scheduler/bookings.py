"""Room that is kept for jobs which would never find it while others take what becomes free bit by bit. Pure.

A job that asks several GPUs of one node, or that has waited for a day, books them on the node that is expected to have
room for it first. Others may use what is kept only if they are expected to be gone by then, as in EASY backfilling
(Lifka, "The ANL/IBM SP scheduling system", JSSPP 1995); here several jobs book at a time, each a node.

Who has booked keeps his node for as long as things go as expected there. When one of the runs that he waits for has
ended or is late, he books where he is expected to start first as things are then: mostly the same node again.
"""

import heapq
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import islice

from services.scheduler.order import Entry
from services.scheduler.predict import opening
from services.scheduler.shape import Shape
from services.scheduler.shares import asks
from services.scheduler.snapshot import Booking
from services.scheduler.trial import Trial
from services.scheduler.turns import OVERDUE_AFTER, Line, Place, Rules

#: One of so many nodes is booked at most; of fewer, one.
NODES = 30
#: So many nodes are looked at for a booking: those that have most of it free.
LOOKED_AT = 32
#: So many bookings are made by a plan; those behind them come in the next ones.
FRESH = 2
#: A booking lasts at least so long.
SHORTEST_S = 1.0


def booked(
    lanes: Iterable[Sequence[Entry]],
    before: Collection[Booking],
    cluster: Trial,
    line: Line,
    rules: Rules,
) -> dict[str, Booking]:
    """Return what is kept of which nodes.

    `lanes` find no room; `before`: what was kept until now, for those who wait still.
    """
    rank = line.rank
    most = max(1, len(cluster) // NODES)
    had = {each.job_id for each in before}
    lasting = {each.job_id: each for each in before if _lasts(each, cluster, rules)}
    kept = {each.node for each in lasting.values()}
    found: dict[str, Booking] = {}
    in_vain: set[Shape] = set()
    fresh = 0

    def order(entry: Entry) -> tuple[int, bool, Place]:
        return rules.level(entry), entry.job_id not in had, rank(entry)

    coming = heapq.merge(*_who_book(lanes, rules), key=rank)
    others = (each for each in coming if each.job_id not in had and not cluster.is_live(each.job_id))
    for entry in heapq.merge(sorted((each.entry for each in before), key=order), others, key=order):
        if len(found) == most:
            break
        if entry.shape in in_vain or line.over_quota(entry.lane.project, asks(entry.shape, None)):
            continue
        booking = lasting.get(entry.job_id)
        if booking is None and fresh < FRESH:
            booking = _book(entry, found.keys() | kept, cluster, rules)
            if booking is None:
                in_vain.add(entry.shape)
            else:
                fresh += 1
        if booking:
            found[booking.node] = booking
    return found


def _who_book(lanes: Iterable[Sequence[Entry]], rules: Rules) -> Iterator[Sequence[Entry]]:
    overdue = rules.now - OVERDUE_AFTER
    for lane in lanes:
        first = lane[0]
        if first.shape.gpus > 1:
            yield lane
        elif first.request.created_at <= overdue:
            yield [each for each in lane if each.request.created_at <= overdue]


def _lasts(booking: Booking, cluster: Trial, rules: Rules) -> bool:
    """Tell whether things are as they were expected to be when it was booked: nobody has ended, or should have."""
    view = cluster.view(booking.node)
    if view is None or not view.ready or not rules.now < booking.until:
        return False
    return booking.gpus <= view.devices.keys() and booking.after <= {held.run_id for held in view.held}


def _book(entry: Entry, taken: Collection[str], cluster: Trial, rules: Rules) -> Booking | None:
    """Return the booking that comes first; of those that come together, the one that waits for the fewest runs."""
    able = (view for view in cluster.able(entry.shape) if view.id not in taken)
    openings = [(opening(view, entry.shape, rules.durations, rules.now), view) for view in islice(able, LOOKED_AT)]
    found = [(each.in_s, len(each.after), len(view.devices), view.id, each) for each, view in openings if each]
    if not found:
        return None
    in_s, _, _, node, best = min(found)
    return Booking(
        entry=entry,
        node=node,
        gpus=frozenset(best.gpus),
        after=frozenset(best.after),
        until=rules.now + timedelta(seconds=max(SHORTEST_S, in_s)),
    )
