"""What is kept for who has booked, as it is lent to others meanwhile. Pure."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import NamedTuple

from services.scheduler.board import Board
from services.scheduler.order import Entry, Key
from services.scheduler.shape import Shape
from services.scheduler.snapshot import Booking, Snapshot
from services.scheduler.turns import OVERDUE_AFTER, Place, Rules

#: Up to so many bookings it is asked who goes before whom: where there are more, there are other nodes to go to, too.
FEW = 3
#: Older than everybody.
NOBODY: Key = (datetime.min.replace(tzinfo=UTC), "")


class Terms(NamedTuple):
    """To whom a booked node is lent: to those that fulfil one of these."""

    #: To those that run no longer; nobody once whoever has booked has waited for too long.
    for_s: float
    #: To those of a level before this one.
    level: int
    #: To those that are older and whose turn it is first; where very much is booked, to none for that.
    key: Key
    place: Place


class Offers(NamedTuple):
    """The booked nodes that have room for a shape."""

    names: Sequence[str]
    #: The most of each of their terms; None: there is no such node.
    most: Terms | None
    #: As of so many changes of the board. Room only shrinks within a plan: where there was none, there is none.
    changes: int


class Lent:
    """One per plan. `board`: the booked nodes, with all that is free there."""

    def __init__(self, snapshot: Snapshot, board: Board, rules: Rules) -> None:
        self._board = board
        self._rules = rules
        self._snapshot = snapshot
        self._bookings = snapshot.bookings
        #: Of those nodes that somebody would find room on.
        self._terms: dict[str, Terms] = {}
        self._offers: dict[Shape, Offers] = {}

    def to(self, shape: Shape) -> Offers:
        """Return what a shape may be lent."""
        found = self._offers.get(shape)
        if found is None or (found.names and found.changes != self._board.changes):
            found = self._offers[shape] = self._offers_to(shape)
        return found

    def may(self, entry: Entry, offers: Offers) -> bool:
        """Tell at a glance whether a job may be lent any of this; where it says yes, there may be none nevertheless."""
        return offers.most is not None and self._is_lent(entry, offers.most)

    def best(self, entry: Entry) -> str | None:
        offers = self.to(entry.shape)
        if not self.may(entry, offers):
            return None
        names = [name for name in offers.names if self._is_lent(entry, self._terms[name])]
        return min(names, key=lambda name: (self._board.price(entry.shape, name), name), default=None)

    def _is_lent(self, entry: Entry, terms: Terms) -> bool:
        return (
            self._rules.durations.expected(entry.lane.digest) <= terms.for_s
            or self._rules.level(entry) < terms.level
            or (entry.key < terms.key and self._place(entry) < terms.place)
        )

    def _terms_of(self, booking: Booking) -> Terms:
        entry, level, now = booking.entry, self._rules.level(booking.entry), self._rules.now
        left_s = -1.0 if entry.key[0] <= now - OVERDUE_AFTER else (booking.until - now).total_seconds()
        if len(self._bookings) > FEW:
            return Terms(left_s, level, NOBODY, (0, 0.0, 0.0, NOBODY))
        return Terms(left_s, level, entry.key, self._place(entry))

    @cached_property
    def _place(self) -> Callable[[Entry], Place]:
        return self._rules.ranking(self._snapshot.using, self._snapshot.whole)

    def _offers_to(self, shape: Shape) -> Offers:
        names = self._board.with_room(shape)
        self._terms |= {name: self._terms_of(self._bookings[name]) for name in names if name not in self._terms}
        most = Terms(*map(max, zip(*(self._terms[name] for name in names), strict=True))) if names else None
        return Offers(names, most, self._board.changes)
