"""When a job that waits will start: what holds of every estimate, and how far it lies from what happens."""

from statistics import median

import pytest

from services.scheduler.forecast import Live, left_s, wait_s
from services.scheduler.order import entry_of
from services.scheduler.predict import Durations
from services.scheduler.shares import Using
from services.simulate import generator
from services.simulate.queue import estimates
from tests.core.scheduler_builders import NOW, a_gpu, a_node, a_request, a_snapshot

GIB = 1 << 30


def held(cpu: int = 4000, left: float = 100.0, node: str = "n1", gpus: int = 0) -> Live:
    return Live(node, Using(cpu, GIB, gpus), left)


def test_it_starts_when_the_run_before_it_ends() -> None:
    """On a node that is full until a run ends, a job starts then, or later by those before it."""
    nodes = a_snapshot([a_node(cpu=4)]).nodes
    full = {name: view.holding() for name, view in nodes.items()}
    view = full["n1"]
    object.__setattr__(view, "used_cpu", 4000)
    durations = Durations()
    durations.note("sha256:0", 50)
    job = entry_of(a_request(1, cpu=4), NOW)
    assert wait_s(job, [], [held(left=100)], full, durations) == 100
    before = [entry_of(a_request(number, cpu=4, age_s=9), NOW) for number in (2, 3)]
    assert wait_s(job, before, [held(left=100)], full, durations) == 200


def test_nobody_can_tell_where_nothing_ends() -> None:
    """Where neither a live run nor a job before it would make room there is no estimate."""
    nodes = a_snapshot([a_node(cpu=4)]).nodes
    assert wait_s(entry_of(a_request(1, cpu=8), NOW), [], [held()], nodes, Durations()) is None
    assert wait_s(entry_of(a_request(1, cpu=4), NOW), [], [], {}, Durations()) is None


def test_a_wide_job_waits_for_one_node() -> None:
    """What becomes free on several nodes together is of no use to a job that needs one of them."""
    nodes = a_snapshot([a_node(f"n{n}", cpu=8, gpus=[a_gpu(f"{n}{each}") for each in range(2)]) for n in (1, 2)]).nodes
    for view in nodes.values():
        object.__setattr__(view, "used_gpus", tuple(gpu.uuid for gpu in view.gpus))
    live = [held(1000, left, node, 1000) for node, left in (("n1", 10), ("n1", 90), ("n2", 20), ("n2", 70))]
    assert wait_s(entry_of(a_request(1, gpus=2), NOW), [], live, nodes, Durations()) == 70
    assert wait_s(entry_of(a_request(1, gpus=1), NOW), [], live, nodes, Durations()) == 10


def test_a_run_that_is_late_is_halfway() -> None:
    """What is left is what was expected less what has gone by, and as much again of a run that should be over."""
    assert (left_s(100, 30), left_s(100, 100), left_s(100, 250)) == (70, 100, 250)


@pytest.mark.parametrize("seed", range(2))
def test_most_estimates_are_of_use(seed: int) -> None:
    """In a replay of a busy time with bursts, the median of how far estimates are off is a small factor."""
    nodes = generator.nodes(8, seed)
    gpus = sum(len(node.gpus) for node in nodes)
    found = estimates(nodes, generator.tasks(30 * gpus, seed, gpus * 1000, 1.0), every=5)
    assert len(found) > 50
    assert median(max(told / was, was / told) for told, was in found) < 3
