"""Evaluation: what it promises of every cluster and queue, and a few examples that people can follow."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gurney.model.job import PlacementRequest, Priority
from gurney.model.run import Node
from services.scheduler import feasible
from services.scheduler.demand import Typical
from services.scheduler.order import Entry, entry_of
from services.scheduler.plan import ATTEMPT_LIVE, Plan, check
from services.scheduler.policy import evaluate
from tests.core.scheduler_builders import (
    GIB,
    NOW,
    OCI,
    RULES,
    a_gpu,
    a_node,
    a_placement,
    a_queue,
    a_request,
    a_snapshot,
    job_id,
    modest_requests,
    places,
    roomy_nodes,
    some_nodes,
    some_requests,
    something_typical,
)


def placed(plan: Plan) -> dict[str, str]:
    return {each.entry.job_id: each.node for each in plan.decisions}


@given(st.one_of(some_nodes(), roomy_nodes()), st.one_of(some_requests(), modest_requests()), something_typical())
def test_a_plan_breaks_no_promise(
    nodes: list[Node], requests: list[PlacementRequest], typical: tuple[Typical, ...]
) -> None:
    """No plan over-commits a node, gives a GPU twice, shares more of it than there is, or places a job twice."""
    plan = evaluate(a_snapshot(nodes, typical=typical), a_queue(*requests).shapes, RULES)
    assert check(plan.after) == []
    assert len(placed(plan)) == len(plan.decisions)


@given(some_nodes(), some_requests())
def test_what_stays_blocked_finds_no_room_and_has_a_counted_reason(
    nodes: list[Node], requests: list[PlacementRequest]
) -> None:
    """After a plan no job waits that a node could take now, and each that waits has reasons that count every node."""
    plan = evaluate(a_snapshot(nodes), a_queue(*requests).shapes, RULES)
    for entry in (entry_of(request, NOW) for request in requests):
        if entry.job_id in placed(plan):
            continue
        assert not feasible.passing(plan.after.nodes.values(), entry.shape, feasible.NOW)
        reasons = plan.reasons(entry)
        assert sum(reason.count for reason in reasons) == len(nodes)
        assert all(reason.code and reason.message for reason in reasons)


@given(some_nodes(), some_requests())
def test_nobody_takes_room_that_one_before_him_could_have_used(
    nodes: list[Node], requests: list[PlacementRequest]
) -> None:
    """A job waits only for room that jobs before it hold: without those behind it, it would wait as well."""
    queue = a_queue(*requests)
    full = placed(evaluate(a_snapshot(nodes), queue.shapes, RULES))
    at = places(queue)
    in_order = sorted(requests, key=lambda request: at[request.job_id])
    for place, request in enumerate(in_order):
        alone = placed(evaluate(a_snapshot(nodes), a_queue(*in_order[: place + 1]).shapes, RULES))
        assert alone.get(request.job_id) == full.get(request.job_id)


@given(some_nodes(), some_requests(), st.randoms())
def test_the_order_of_arrival_does_not_matter(
    nodes: list[Node], requests: list[PlacementRequest], chance: object
) -> None:
    """The same jobs give the same plan, in whatever order the scheduler heard of them."""
    plan = evaluate(a_snapshot(nodes), a_queue(*requests).shapes, RULES)
    shuffled = list(requests)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert placed(evaluate(a_snapshot(nodes), a_queue(*shuffled).shapes, RULES)) == placed(plan)


def test_small_shares_of_a_core_add_up_exactly() -> None:
    """Two hundred jobs of a hundredth of a core fill two cores, and not one more fits."""
    requests = [a_request(number, cpu=0.01, memory=0) for number in range(201)]
    plan = evaluate(a_snapshot([a_node(cpu=2)]), a_queue(*requests).shapes, RULES)
    assert len(plan.decisions) == 200


def test_a_large_job_does_not_keep_small_ones_from_room_that_it_cannot_use() -> None:
    """A job that does not fit is passed over."""
    plan = evaluate(
        a_snapshot([a_node(cpu=2)]), a_queue(a_request(1, cpu=3, age_s=9), a_request(2, cpu=1)).shapes, RULES
    )
    assert placed(plan) == {job_id(2): "n1"}


def test_a_job_with_a_live_attempt_waits() -> None:
    """No job has two live placements, whatever is asked."""
    queue = a_queue(a_request(1, attempt=2))
    plan = evaluate(a_snapshot([a_node()], [a_placement(1)]), queue.shapes, RULES)
    assert plan.decisions == ()
    entry = queue.get(job_id(1))
    assert entry is not None
    assert plan.reasons(entry) == (ATTEMPT_LIVE,)


def test_a_job_takes_the_fullest_node_that_has_room() -> None:
    """Best fit: what is left stays together."""
    nodes = [a_node("n1", cpu=8), a_node("n2", cpu=2), a_node("n3", cpu=1)]
    assert placed(evaluate(a_snapshot(nodes), a_queue(a_request(1, cpu=2)).shapes, RULES)) == {job_id(1): "n2"}


def test_nodes_with_gpus_are_left_to_those_who_need_them() -> None:
    """A job without GPUs goes elsewhere where it can."""
    nodes = [a_node("n1", cpu=1, gpus=[a_gpu("1")]), a_node("n2", cpu=16)]
    assert placed(evaluate(a_snapshot(nodes), a_queue(a_request(1)).shapes, RULES)) == {job_id(1): "n2"}


def test_a_node_that_lost_an_attempt_is_tried_last() -> None:
    """What is avoided is still better than nothing."""
    nodes = [a_node("n1", cpu=1), a_node("n2", cpu=16)]
    queue = a_queue(a_request(1, avoid=("n1",)), a_request(2, avoid=("n1", "n2")))
    assert placed(evaluate(a_snapshot(nodes), queue.shapes, RULES))[job_id(1)] == "n2"


def test_gpus_are_given_by_uuid_and_once() -> None:
    """Jobs get the healthy GPUs that suit them, each its own."""
    gpus = [a_gpu("bad", health="xid"), a_gpu("small", memory=GIB), a_gpu("x"), a_gpu("y")]
    requests = [a_request(number, gpus=1, gpu_memory=8 * GIB) for number in (1, 2, 3)]
    plan = evaluate(a_snapshot([a_node(gpus=gpus, cpu=64, memory=64 * GIB)]), a_queue(*requests).shapes, RULES)
    assert [each.gpus for each in plan.decisions] == [("GPU-x",), ("GPU-y",)]
    assert [reason.code for reasons in plan.blocked.values() for reason in reasons] == ["gpus_busy"]


def test_a_thousand_jobs_of_one_shape_are_given_up_at_once() -> None:
    """Where no room is, a long queue costs no more than a short one: nobody looks at more than its first."""
    looks: list[int] = []

    class Counting(list[Entry]):
        def __getitem__(self, place: Any) -> Any:
            looks.append(place)
            return super().__getitem__(place)

    ((lane, entries),) = a_queue(*(a_request(number, cpu=64) for number in range(1000))).lanes.items()
    plan = evaluate(a_snapshot([a_node()]), {lane.shape: {lane: Counting(entries)}}, RULES)
    assert set(looks) == {0}
    assert len(plan.blocked) == 1


def test_check_finds_what_must_not_be() -> None:
    """Over-committed cores and memory, a GPU given twice and two live placements of a job are each told."""
    placements = [
        a_placement(1, cpu=3, gpus=("GPU-1",)),
        a_placement(1, attempt=2, cpu=3, gpus=("GPU-1",)),
        a_placement(2, memory=64 * GIB, urn=f"{OCI}a", priority=Priority.LOWER),
    ]
    faults = check(a_snapshot([a_node(gpus=[a_gpu("1")])], placements))
    assert [fault.partition(": ")[2].split()[0] for fault in faults[:3]] == ["7000", str(66 * GIB), "a"]
    assert faults[3].startswith(f"{job_id(1)} has live placements")
