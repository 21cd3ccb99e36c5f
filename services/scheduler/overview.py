"""Keeps the view of the cluster between decisions: what has changed since the last one is derived anew. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

from gurney.model.run import Node
from services.scheduler.board import Board
from services.scheduler.demand import Typical
from services.scheduler.grid import Room
from services.scheduler.shares import Using
from services.scheduler.snapshot import (
    Boards,
    Booking,
    Held,
    NodeView,
    Snapshot,
    counts,
    room_of,
    using_of,
    view_of,
    whole_of,
)


class Overview:
    """Follows nodes and live placements. Whenever a node changes, its room is derived from all that is live there."""

    def __init__(self, silent_after: timedelta) -> None:
        self._silent_after = silent_after
        self._held: dict[str, Held] = {}
        self._on: dict[str, dict[str, Held]] = {}
        self._live: dict[str, tuple[str, ...]] = {}
        #: Run -> what it takes of its project's share, and project -> what its runs take.
        self._takes: dict[str, Using] = {}
        self._using: dict[str, Using] = {}
        self._nodes: dict[str, Node] = {}
        self._seen: list[Node] = []
        #: With nothing in use.
        self._bare: dict[str, NodeView] = {}
        self._views: dict[str, NodeView] = {}
        #: Nodes whose room is to be derived.
        self._changed: set[str] = set()
        #: From the one to the other time no node falls silent.
        self._calm = (datetime.max.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
        self._typical: tuple[Typical, ...] = ()
        self._boards = Boards(Board(), Board())
        self._bookings: dict[str, Booking] = {}

    def place(self, held: Held) -> None:
        """Take a live placement in."""
        self.free(held.run_id)
        self._held[held.run_id] = held
        self._live[held.job_id] = (*self._live.get(held.job_id, ()), held.run_id)
        if held.node is not None:
            takes = self._takes[held.run_id] = using_of(held, self._bare.get(held.node))
            self._using[held.project] = self._using.get(held.project, Using()).plus(takes)
            self._on.setdefault(held.node, {})[held.run_id] = held
            self._changed.add(held.node)

    def free(self, run_id: str) -> None:
        """Let go of a placement; of one that is not here, nothing."""
        held = self._held.pop(run_id, None)
        if held is None:
            return
        others = tuple(run for run in self._live.pop(held.job_id) if run != run_id)
        if others:
            self._live[held.job_id] = others
        if held.node is not None:
            left = self._using[held.project] = self._using[held.project].minus(self._takes.pop(run_id))
            if not any(left):
                del self._using[held.project]
            del self._on[held.node][run_id]
            self._changed.add(held.node)

    def book(self, bookings: Mapping[str, Booking]) -> bool:
        """Keep this for jobs that wait, and no more what was kept; tells whether others may have more than before."""
        dropped = [name for name, booking in self._bookings.items() if bookings.get(name) is not booking]
        self._changed.update(dropped, (name for name in bookings if name not in self._bookings))
        for name in self._bookings.keys() - bookings.keys():
            self._boards.booked.drop(name)
        self._bookings = dict(bookings)
        return bool(dropped)

    def takes(self, run_id: str) -> Using:
        """Return what a live placement takes of its project's share."""
        return self._takes.get(run_id, Using())

    def share_of(self, run_id: str) -> float:
        """Return which share of the cluster a live placement holds."""
        return self.takes(run_id).share_of(whole_of(self._boards.open))

    def snapshot(self, nodes: Mapping[str, Node], now: datetime, typical: tuple[Typical, ...] = ()) -> Snapshot:
        """Return the cluster as it is, of these nodes and all live placements."""
        self._follow(nodes, now)
        if typical != self._typical:
            self._typical = typical
            for board in self._boards:
                board.expect(typical)
            self._boards.open.edition += 1
        if self._changed:
            self._derive()
        live, using = MappingProxyType(self._live), MappingProxyType(self._using)
        bookings = dict(self._bookings)
        return Snapshot(dict(self._views), live, typical, using, bookings, self._boards, self._boards.open.edition)

    def capable(self, nodes: Mapping[str, Node], now: datetime) -> list[NodeView]:
        """Return the nodes that count when it is asked what could ever run; what is in use there is left out."""
        self._follow(nodes, now)
        return [self._bare[name] for name, node in nodes.items() if counts(node, now)]

    def _follow(self, nodes: Mapping[str, Node], now: datetime) -> None:
        since, until = self._calm
        if not since <= now < until:
            self._nodes = {}
            until = datetime.max.replace(tzinfo=now.tzinfo)
        elif list(nodes.values()) == self._seen:
            return  # compared by identity first, so this costs next to nothing
        self._seen = list(nodes.values())
        for name, node in nodes.items():
            if self._nodes.get(name) is not node:
                self._look_at(node, now)
                until = min(until, self._falls_silent(node, now))
        self._calm = (now, until)
        if len(self._bare) > len(nodes):
            for name in self._bare.keys() - nodes.keys():
                self._nodes.pop(name, None)
                del self._bare[name]
                self._changed.add(name)

    def _look_at(self, node: Node, now: datetime) -> None:
        view = view_of(node, now - node.last_seen_at, self._silent_after)
        self._nodes[node.id] = node
        if self._bare.get(node.id) != view:
            self._bare[node.id] = view
            self._changed.add(node.id)

    def _falls_silent(self, node: Node, now: datetime) -> datetime:
        """Return when a node will count as silent if nothing more is heard of it; of one that does, never."""
        at = node.last_seen_at + self._silent_after
        return at if at >= now else datetime.max.replace(tzinfo=now.tzinfo)

    def _derive(self) -> None:
        """Derive the views and rows of the nodes that have changed."""
        rooms: dict[str, Room] = {}
        booked: dict[str, Room] = {}
        board = self._boards.open
        for name in sorted(self._changed):  # a node's row is where it came first
            bare = self._bare.get(name)
            if bare is None:
                if self._views.pop(name, None):
                    board.drop(name)
                if self._bookings.pop(name, None):
                    self._boards.booked.drop(name)
                continue
            view = self._views[name] = bare.holding(*self._on.get(name, {}).values())
            booking = self._bookings.get(name)
            room = room_of(view, booking)
            if booking:
                booked[name] = view.room
            if board.room(name) != room:
                rooms[name] = room
        board.put_all(rooms)
        self._boards.booked.put_all(booked)
        for name in self._changed & self._views.keys():
            board.hold(name, self._views[name].images)
        self._changed.clear()
        board.edition += 1
