"""Snapshot and waiting jobs in, plan out. Pure.

Each job is tried in order, and one that does not fit now does not keep those behind it from room that it cannot use.
Room only shrinks within a plan, so once a job does not fit, no other of its shape is tried.
"""

import heapq
from collections.abc import Mapping, Sequence

from gurney.model.job import WaitReason
from services.scheduler import feasible, rank
from services.scheduler.order import Entry, Key
from services.scheduler.plan import Decision, Plan
from services.scheduler.shape import Shape
from services.scheduler.snapshot import Snapshot

Lanes = Mapping[Shape, Sequence[Entry]]


def evaluate(snapshot: Snapshot, lanes: Lanes) -> Plan:
    """Place what fits, in order; say of the rest why it waits."""
    decisions: list[Decision] = []
    blocked: dict[Shape, tuple[WaitReason, ...]] = {}
    held: set[str] = set()
    heads: list[tuple[Key, int, int]] = [(lane[0].key, number, 0) for number, lane in enumerate(lanes.values()) if lane]
    heapq.heapify(heads)
    by_number = list(lanes.values())
    while heads:
        _, number, place = heapq.heappop(heads)
        entry = by_number[number][place]
        if entry.job_id in snapshot.live:
            held.add(entry.job_id)
        elif decision := _decide(snapshot, entry):
            decisions.append(decision)
            snapshot = snapshot.placed(entry.job_id, decision.run_id, decision.node, entry.shape, decision.gpus)
        else:
            blocked[entry.shape] = feasible.reasons(snapshot.nodes.values(), entry.shape, feasible.NOW)
            continue
        if place + 1 < len(by_number[number]):
            heapq.heappush(heads, (by_number[number][place + 1].key, number, place + 1))
    return Plan(tuple(decisions), blocked, frozenset(held), snapshot)


def _decide(snapshot: Snapshot, entry: Entry) -> Decision | None:
    shape = entry.shape
    possible = feasible.passing(snapshot.nodes.values(), shape, feasible.NOW)
    if not possible:
        return None
    node = rank.best(possible, shape)
    return Decision(entry, node.id, tuple(node.free_suited(shape)[: shape.gpus]) if shape.gpus else ())
