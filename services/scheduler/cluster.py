"""What the leader holds in memory: nodes, live placements and the jobs that wait. No IO.

A placement is here from the moment of its decision, before it is written: so no two decisions see the same room. What
is written is the truth; a write that fails is undone here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from gurney.model.resources import Quota
from gurney.model.run import Heartbeat, Node, Placement
from services.scheduler.demand import Demand
from services.scheduler.order import Entry, Queue
from services.scheduler.overview import Overview
from services.scheduler.predict import Durations
from services.scheduler.shape import Shape
from services.scheduler.shares import Shares
from services.scheduler.snapshot import Booking, NodeView, Snapshot, held_by
from services.scheduler.turns import Rules


@dataclass(slots=True)
class Notes:
    """What is remembered of a live run besides its placement; lost in a restart, and not missed.

    Seconds are of the monotonic clock; what becomes a time stamp is not.
    """

    #: When `running` was reported, until the placement says it.
    running_since: datetime | None = None
    #: Phase that was told last, and when.
    phase: str | None = None
    phase_at: float | None = None
    #: When its start or stop was last sent again.
    sent_at: float | None = None
    #: Heartbeats in a row that did not name it.
    missed: int = 0


class Cluster:
    """One per scheduler."""

    def __init__(self, silent_after: timedelta, quotas: Mapping[str, Quota] | None = None) -> None:
        self._quotas = quotas or {}
        self._overview = Overview(silent_after)
        self._placements: dict[str, Placement] = {}
        self._notes: dict[str, Notes] = {}
        self.epoch = 0
        self.queue = Queue()
        self.demand = Demand()
        self.durations = Durations()
        self.shares = Shares()
        #: With the time of their last heartbeat, which documents lag behind.
        self.nodes: dict[str, Node] = {}
        self.beats: dict[str, Heartbeat] = {}
        #: Shapes that no known node could ever hold, and since when, by the monotonic clock.
        self.hopeless: dict[Shape, float] = {}

    @property
    def placements(self) -> Mapping[str, Placement]:
        """The live ones, by run id."""
        return self._placements

    def snapshot(self, now: datetime) -> Snapshot:
        """Return the cluster as it is."""
        return self._overview.snapshot(self.nodes, now, self.demand.typical)

    def capable(self, now: datetime) -> list[NodeView]:
        """Return the nodes that count when it is asked what could ever run; what is in use there is left out."""
        return self._overview.capable(self.nodes, now)

    def book(self, bookings: Mapping[str, Booking]) -> bool:
        """Keep this for jobs that wait, and no more what was kept; tells whether others may have more than before."""
        return self._overview.book(bookings)

    def want(self, entry: Entry) -> None:
        """Take a job into the queue."""
        if self.queue.add(entry):
            self.demand.saw(entry.shape, entry.since)

    def rules(self, now: datetime) -> Rules:
        """Return what decides whose turn it is."""
        return Rules(now, self.shares.had(now), self.durations, self._quotas)

    def see(self, node: Node) -> Node:
        """Follow a node's document and return the node as it is known. Of an older revision only the time counts."""
        known = self.nodes.get(node.id, node)
        newest = known if known.revision > node.revision else node
        self.nodes[node.id] = newest.but(last_seen_at=max(known.last_seen_at, node.last_seen_at))
        return self.nodes[node.id]

    def on(self, node: str) -> list[Placement]:
        """Return the live placements of a node."""
        return [placement for placement in self._placements.values() if placement.node == node]

    def notes(self, run_id: str) -> Notes:
        """Return what is remembered of a run; of one that is not live, notes that nobody keeps."""
        return self._notes.get(run_id) or Notes()

    def add(self, placement: Placement) -> None:
        """Take a live placement in."""
        self._placements[placement.id] = placement
        self._notes[placement.id] = Notes()
        self._overview.place(held_by(placement))

    def put(self, placement: Placement) -> bool:
        """Follow a placement's change; tells whether room is free now. An older revision changes nothing."""
        known = self._placements.get(placement.id)
        if known is None or known.revision > placement.revision:
            return False
        if placement.live:
            self._placements[placement.id] = placement
            return False
        self._remember(placement)
        self.forget(placement.id)
        return True

    def _remember(self, placement: Placement) -> None:
        """Keep what a placement that is over tells of its MAP and its project."""
        if placement.node is None or placement.ended_at is None:
            return
        begin, end = placement.placed_at, placement.ended_at
        self.shares.ended(placement.project, self._overview.share_of(placement.id), begin, end)
        if placement.request and placement.outcome and placement.outcome.ending == "succeeded":
            self.durations.note(placement.request.digest, (end - begin).total_seconds())

    def forget(self, run_id: str) -> None:
        """Let go of a placement that is not live, or was never written."""
        self._placements.pop(run_id, None)
        self._notes.pop(run_id, None)
        self._overview.free(run_id)
