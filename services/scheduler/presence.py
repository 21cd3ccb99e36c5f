"""When nodes and runs were last heard of, and what follows from silence. Pure.

Times are of the leader's monotonic clock: the wall clock of its host may be put forward or back by hours, and nothing
is lost, sent again or given back for it. All counts begin anew whenever the leader may have missed heartbeats: when it
takes over, connects again, finds a new stream, or was held up itself. So silence is the node's, never the leader's.
"""

from collections.abc import Collection

from gurney.model.run import Node, NodeState, Placement, PlacementState

#: Seconds that are added to a run's lease before the run counts as gone: the time to kill it, and what clocks differ.
MARGIN_S = 15.0


class Presence:
    """What one leader has heard."""

    def __init__(self, lost_after: float) -> None:
        self._lost_after = lost_after
        self._since = 0.0
        self._nodes: dict[str, float] = {}
        self._runs: dict[str, float] = {}
        self._written: dict[str, float] = {}

    def restart(self, now: float) -> None:
        """Begin all counts anew."""
        self._since = max(self._since, now)

    def heard(self, node: str, runs: Collection[str], now: float) -> None:
        """Note a heartbeat and the runs that it named."""
        self._nodes[node] = now
        self._runs |= dict.fromkeys(runs, now)

    def confirmed(self, run_id: str, now: float) -> None:
        """Note that a run may start: its agent counts its lease from when it asked."""
        self._runs[run_id] = now

    def written(self, run_id: str, now: float) -> None:
        """Note that a placement was made or changed: whoever is to answer has been told."""
        self._written[run_id] = now

    def unchanged_for(self, run_id: str, now: float) -> float:
        """Return for how many seconds a placement has been as it is, as far as this leader knows."""
        return now - max(self._since, self._written.get(run_id, 0.0))

    def keep(self, runs: Collection[str]) -> None:
        """Forget all other runs."""
        self._runs = {run_id: at for run_id, at in self._runs.items() if run_id in runs}
        self._written = {run_id: at for run_id, at in self._written.items() if run_id in runs}

    def is_silent(self, node: str, now: float) -> bool:
        """Tell whether a node was silent for long enough to be lost."""
        return now - max(self._since, self._nodes.get(node, 0.0)) >= self._lost_after

    def is_gone(self, placement: Placement, node: Node, now: float) -> bool:
        """Tell whether a run of a silent node cannot be there any more, so that the next attempt may begin.

        What was never confirmed has not started. What was lives no longer than its lease; without one it waits for its
        agent, however long that takes.
        """
        if node.lease is None:
            return False
        match placement.state:
            case PlacementState.PLACED:
                return node.state is NodeState.LOST
            case PlacementState.CONFIRMED:
                named = max(self._since, self._runs.get(placement.id, 0.0))
                return now - named >= node.lease + MARGIN_S
            case _:
                return False
