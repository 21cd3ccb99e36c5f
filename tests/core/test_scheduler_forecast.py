"""When a job that waits will start: what holds of every estimate, and how far it lies from what happens."""

from collections.abc import Sequence
from datetime import timedelta
from statistics import median

import pytest

from gurney.model.run import Node, Placement
from services.scheduler.forecast import outlook
from services.scheduler.order import Entry, Queue, entry_of
from services.scheduler.predict import UNKNOWN_S, Durations
from services.scheduler.snapshot import Snapshot, held_by
from services.simulate import generator
from services.simulate.queue import estimates
from tests.core.scheduler_builders import NOW, RULES, a_gpu, a_node, a_placement, a_request, a_snapshot


def full(nodes: Sequence[Node], *left: tuple[str, float]) -> Snapshot:
    """Return nodes with a run for each pair of a node and the seconds that it has left; on GPUs, where it has some."""
    placements: list[Placement] = []
    for number, (node, left_s) in enumerate(left, start=100):
        gpus = [gpu.uuid for each in nodes if each.id == node for gpu in each.gpus]
        taken = [uuid for placement in placements if placement.node == node for uuid in placement.gpus]
        mine = tuple(uuid for uuid in gpus if uuid not in taken)[:1]
        cpu = 1 if gpus else 4
        since = NOW - timedelta(seconds=UNKNOWN_S - left_s)
        placements.append(a_placement(number, node, gpus=mine, cpu=cpu).but(placed_at=since))
    return a_snapshot(nodes, placements)


def waits_for(snapshot: Snapshot, *entries: Entry) -> float | None:
    """Return the estimate for the first of these, which all wait."""
    queue = Queue()
    for entry in entries:
        queue.add(entry)
    return outlook(entries[0], queue.lanes, snapshot, RULES)[1]


def test_it_starts_when_the_run_before_it_ends() -> None:
    """On a node that is full until a run ends, a job starts then, or later by those before it."""
    snapshot = full([a_node(cpu=4)], ("n1", 100))
    job = entry_of(a_request(1, cpu=4), NOW)
    assert waits_for(snapshot, job) == 100
    before = [entry_of(a_request(number, cpu=4, age_s=9), NOW) for number in (2, 3)]
    assert waits_for(snapshot, job, *before) == 100 + 2 * UNKNOWN_S


def test_nobody_can_tell_where_nothing_ends() -> None:
    """Where neither a live run nor a job before it would make room there is no estimate."""
    assert waits_for(full([a_node(cpu=4)], ("n1", 10)), entry_of(a_request(1, cpu=8), NOW)) is None
    assert waits_for(a_snapshot([]), entry_of(a_request(1, cpu=4), NOW)) is None


def test_a_wide_job_waits_for_one_node() -> None:
    """What becomes free on several nodes together is of no use to a job that needs one of them."""
    nodes = [a_node(f"n{n}", cpu=8, gpus=[a_gpu(f"{n}{each}") for each in range(2)]) for n in (1, 2)]
    snapshot = full(nodes, ("n1", 10), ("n1", 90), ("n2", 20), ("n2", 70))
    assert waits_for(snapshot, entry_of(a_request(1, gpus=2), NOW)) == 70
    assert waits_for(snapshot, entry_of(a_request(1, gpus=1), NOW)) == 10


def test_a_run_that_is_late_is_halfway() -> None:
    """What is left is what was expected less what has gone by, and as much again of a run that should be over."""
    durations = Durations()
    durations.note("sha256:0", 100)
    held = held_by(a_placement())
    left = [durations.left_s(held, NOW + timedelta(seconds=seconds)) for seconds in (-5, 30, 100, 250)]
    assert left == [100, 70, 100, 250]


@pytest.mark.parametrize("seed", range(2))
def test_most_estimates_are_of_use(seed: int) -> None:
    """In a replay of a busy time with bursts, the median of how far estimates are off is a small factor."""
    nodes = generator.nodes(8, seed)
    gpus = sum(len(node.gpus) for node in nodes)
    found = estimates(nodes, generator.tasks(30 * gpus, seed, gpus * 1000, 1.0), every=5)
    assert len(found) > 50
    assert median(max(told / was, was / told) for told, was in found) < 3
