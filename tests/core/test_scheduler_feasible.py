"""Why a job is not placed: each filter has its reason, and reasons are counted."""

from datetime import timedelta
from typing import Any

import pytest

from gurney.model.run import Node, NodeState
from services.scheduler import feasible
from services.scheduler.admission import FIELDS
from services.scheduler.shape import shape_of
from tests.core.scheduler_builders import GIB, NOW, OCI, a_gpu, a_node, a_placement, a_run, a_snapshot

FULL = a_placement(9, cpu=4.0, memory=8 * GIB)


@pytest.mark.parametrize(
    ("code", "node", "asked"),
    [
        ("no_runtime", a_node(), {"urn": f"{OCI}x"}),
        ("no_runtime", a_node(kinds=()), {}),
        ("node_labels", a_node(labels={"site": "b"}), {"node_labels": {"site": "a"}}),
        ("gpus", a_node(), {"gpus": 1}),
        ("gpus", a_node(gpus=[a_gpu("1"), a_gpu("2", health="xid")]), {"gpus": 2}),
        ("gpu_model", a_node(gpus=[a_gpu("1")]), {"gpus": 1, "gpu_model": "B|C"}),
        ("gpu_model", a_node(gpus=[a_gpu("1"), a_gpu("2", model="B")]), {"gpus": 2, "gpu_model": "B"}),
        ("compute_capability", a_node(gpus=[a_gpu("1")]), {"gpus": 1, "compute_capability": "8.0"}),
        (
            "compute_capability",
            a_node(gpus=[a_gpu("1", compute_capability="8.6")]),
            {"gpus": 1, "compute_capability": "8.9"},
        ),
        (
            "compute_capability",
            a_node(gpus=[a_gpu("1", compute_capability="9.0")]),
            {"gpus": 1, "compute_capability": "sm_80"},
        ),
        ("gpu_memory", a_node(gpus=[a_gpu("1")]), {"gpus": 1, "gpu_memory": 16 * GIB + 1}),
        ("gpu_memory", a_node(gpus=[a_gpu("1")]), {"gpu_share": 32 * GIB}),
        ("cpu", a_node(), {"cpu": 4.001}),
        ("memory", a_node(), {"memory": 8 * GIB + 1}),
        ("lost", a_node(state=NodeState.LOST), {}),
        ("draining", a_node(state=NodeState.DRAINING), {}),
        ("silent", a_node(last_seen_at=NOW - timedelta(seconds=16)), {}),
    ],
)
def test_each_filter_refuses_with_its_reason(code: str, node: Node, asked: dict[str, Any]) -> None:
    """A node that cannot take a job says why, in a code and a sentence."""
    (reason,) = feasible.reasons(a_snapshot([node]).nodes.values(), shape_of(a_run(**asked)), feasible.NOW)
    assert (reason.code, reason.count) == (code, 1)
    assert reason.message


@pytest.mark.parametrize(
    ("code", "placement", "asked"),
    [
        ("cpu_busy", a_placement(9, cpu=3.5, memory=0), {"cpu": 1.0}),
        ("memory_busy", a_placement(9, cpu=0.0, memory=8 * GIB), {"memory": 1}),
        ("gpus_busy", a_placement(9, gpus=("GPU-1",)), {"gpus": 1}),
        ("gpus_busy", a_placement(9, gpus=("GPU-1",), share=1), {"gpus": 1}),
        ("gpu_share_busy", a_placement(9, gpus=("GPU-1",)), {"gpu_share": GIB}),
        ("gpu_share_busy", a_placement(9, gpus=("GPU-1",), share=1), {"gpu_share": GIB}),
    ],
)
def test_what_is_in_use_is_short_for_now_only(code: str, placement: Any, asked: dict[str, Any]) -> None:
    """A full node refuses a job now, and could hold it one day."""
    nodes = a_snapshot([a_node(gpus=[a_gpu("1")])], [placement]).nodes.values()
    shape = shape_of(a_run(**asked))
    assert [reason.code for reason in feasible.reasons(nodes, shape, feasible.NOW)] == [code]
    assert feasible.reasons(nodes, shape, feasible.EVER) == ()


def test_a_share_that_finds_too_little_room_hears_how_much_there_is() -> None:
    """Where GPUs may be shared, the reason tells what is free of the emptiest; where not, that is nothing."""
    placed = [a_placement(9, gpus=("GPU-1",), share=12 * 1024, gpu_share=12 * GIB)]
    shape = shape_of(a_run(gpu_share=5 * GIB))
    for sharing, message in (
        (True, "asks 5120 MiB of a GPU, 4096 MiB of one are free"),
        (False, "asks 5120 MiB of a GPU, 0 MiB of one are free"),
    ):
        nodes = a_snapshot([a_node(gpus=[a_gpu("1")], gpu_sharing=sharing)], placed).nodes.values()
        (reason,) = feasible.reasons(nodes, shape, feasible.NOW)
        assert (reason.code, reason.message) == ("gpu_share_busy", message)


def test_reasons_are_counted_and_the_most_frequent_comes_first() -> None:
    """Each node gives one reason; the message speaks of the best of the nodes that give it."""
    nodes = a_snapshot([a_node("n1", cpu=1), a_node("n2", cpu=2), a_node("n3", kinds=())]).nodes.values()
    reasons = feasible.reasons(nodes, shape_of(a_run(cpu=3)), feasible.NOW)
    assert [(reason.code, reason.count) for reason in reasons] == [("cpu", 2), ("no_runtime", 1)]
    assert reasons[0].message == "asks 3 cores, the node has 2 cores"


def test_without_nodes_the_reason_says_so() -> None:
    """Nothing known is a reason too."""
    assert feasible.reasons((), shape_of(a_run()), feasible.NOW) == (feasible.NO_NODES,)


def test_a_node_with_room_gives_no_reason() -> None:
    """As soon as one node passes there is nothing to explain, however many others do not."""
    nodes = a_snapshot([a_node("n1"), a_node("n2")], [FULL]).nodes.values()
    assert feasible.reasons(nodes, shape_of(a_run()), feasible.NOW) == ()
    assert [node.id for node in feasible.passing(nodes, shape_of(a_run()), feasible.NOW)] == ["n2"]


def test_every_reason_for_ever_names_a_field() -> None:
    """What makes a request infeasible can be told as a field of the request."""
    assert {each.code for each in feasible.EVER} == set(FIELDS)
