"""The states of a node, as heartbeats, silence and administrators make them, and the one place that changes them. Pure.

ready <-> draining; either -> lost -> what it was before, unless it is drained or resumed while it is lost. A node that
was lost for long is forgotten, and that it was drained with it.
"""

from datetime import datetime, timedelta

from gurney.model.run import Heartbeat, Node, NodeState, Placement, PlacementState

#: `last_seen_at` is written this often; memory has it from every heartbeat.
SAVE_EVERY = timedelta(seconds=30)
#: A confirmed run that its agent does not name is gone, so many seconds after it was confirmed.
GONE_AFTER_S = 15.0
#: A node that was lost for so long has left.
LEFT_AFTER = timedelta(days=1)


def node_of(beat: Heartbeat, at: datetime, known: Node | None = None) -> Node:
    """Return the node that a heartbeat tells of, at its known revision."""
    drained = known is not None and known.drained
    return Node(
        id=beat.node,
        revision=known.revision if known else 1,
        state=NodeState.DRAINING if drained else NodeState.READY,
        drained=drained,
        labels=beat.labels,
        simulated=beat.simulated,
        capacity=beat.capacity,
        gpus=beat.gpus,
        gpu_sharing=beat.gpu_sharing,
        images=beat.images,
        kinds=beat.kinds,
        faults=beat.faults,
        incarnation=beat.incarnation,
        home=beat.home,
        lease=beat.lease,
        last_seen_at=max(at, known.last_seen_at) if known else at,
    )


def is_another_host(known: Node, seen: Heartbeat | Node) -> bool:
    """Tell whether another host than the node of that name is seen. Where runs have no lease there is one host only."""
    return known.lease is not None and seen.home != known.home


def is_worth_saving(saved: Node, seen: Node) -> bool:
    """Tell whether a node's document is to follow what was seen."""
    same = _lasting(seen.but(last_seen_at=saved.last_seen_at, revision=saved.revision)) == _lasting(saved)
    return not same or seen.last_seen_at - saved.last_seen_at >= SAVE_EVERY


def _lasting(node: Node) -> Node:
    """Return the node without what changes all the time: what its GPUs have in use."""
    return node.but(gpus=tuple(gpu.but(used=0, others=0) for gpu in node.gpus))


def lost(node: Node) -> Node | None:
    """Return the node as lost; None where it is."""
    return None if node.state is NodeState.LOST else node.next(state=NodeState.LOST)


def drained(node: Node) -> Node | None:
    """Return the node as one that takes no new jobs; None where it is."""
    return None if node.drained else _drained(node, drained=True)


def resumed(node: Node) -> Node | None:
    """Return the node as one that takes jobs again; None where it does."""
    return _drained(node, drained=False) if node.drained else None


def _drained(node: Node, *, drained: bool) -> Node:
    there = NodeState.DRAINING if drained else NodeState.READY
    return node.next(drained=drained, state=NodeState.LOST if node.state is NodeState.LOST else there)


def has_left(node: Node, now: datetime) -> bool:
    """Tell whether a node was lost for so long that it is forgotten."""
    return node.state is NodeState.LOST and now - node.last_seen_at >= LEFT_AFTER


def is_over(placement: Placement, node: str) -> bool:
    """Tell whether a run may be on this node no more."""
    return not placement.live or placement.node != node


def is_missing(placement: Placement, beat: Heartbeat, unchanged_for: float) -> bool:
    """Tell whether a heartbeat should name this run, which has been confirmed for so many seconds, and does not."""
    is_old = placement.state is PlacementState.CONFIRMED and unchanged_for > GONE_AFTER_S
    return is_old and placement.id not in beat.runs
