"""What is kept between decisions is what would be found out anew, and prices are what they are said to be."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gurney.model.job import PlacementRequest
from gurney.model.run import Node, NodeState, Placement
from services.scheduler import feasible, machine
from services.scheduler.board import FIT, Board
from services.scheduler.demand import Typical, task_of
from services.scheduler.fragments import TOGETHER
from services.scheduler.grid import runs
from services.scheduler.order import Queue, entry_of
from services.scheduler.overview import Overview
from services.scheduler.plan import check
from services.scheduler.policy import evaluate
from services.scheduler.shape import NEVER, Shape, shape_of, takes
from services.scheduler.snapshot import Booking, NodeView, Snapshot, held_by, snapshot_of, using_of
from services.scheduler.turns import Rules
from tests.core.scheduler_builders import (
    ASKS,
    GIB,
    MODEST_ASKS,
    NOW,
    RULES,
    SILENT_AFTER,
    a_gpu,
    a_node,
    a_placement,
    a_queue,
    a_request,
    a_run,
    a_snapshot,
    job_id,
    modest_requests,
    roomy_nodes,
    some_nodes,
    some_requests,
    something_typical,
)

SHAPES = st.builds(lambda ask: shape_of(a_request(**ask).request), st.one_of(ASKS, MODEST_ASKS))
NODES = st.one_of(some_nodes(), roomy_nodes())
REQUESTS = st.one_of(some_requests(), modest_requests())


def rows(board: Board, names: Any) -> dict[str, Any]:
    """Return what a board has of nodes, by name."""
    found = {}
    for name in names:
        row = board.names.index(name)
        found[name] = (
            int(board.standing[row]),
            int(board.cpu[row]),
            int(board.memory[row]),
            board.free[row][board.kind[row] >= 0].tolist(),
            pytest.approx(board.idle[row]),
            pytest.approx(board._usable[row]),
            [bool(board.holders.of(thing, len(board.cpu))[row]) for thing in ("0", "1", "2")],
        )
    return found


def prices(board: Board, shape: Shape, names: Any) -> dict[str, float]:
    found = board.scores(shape)
    return {name: float(found[board.names.index(name)]) for name in names}


class House:
    """An overview, and beside it plain lists of what it was told."""

    def __init__(self) -> None:
        self.overview = Overview(SILENT_AFTER)
        self.nodes: dict[str, Node] = {}
        self.placements: dict[str, Placement] = {}
        self.typical: tuple[Typical, ...] = ()
        self.now = NOW
        self.queue = Queue()
        self.rounds = 0
        self.bookings: Mapping[str, Booking] = {}

    def snapshot(self) -> Snapshot:
        return self.overview.snapshot(self.nodes, self.now, self.typical)

    def run(self, requests: list[PlacementRequest]) -> None:
        """Place what fits of these and of those that wait, as the scheduler does; recorded, it is the same plan."""
        self.rounds += 1
        for number, each in enumerate(requests, start=1000 * self.rounds):
            self.queue.add(entry_of(each.but(job_id=job_id(number)), self.now))
        snapshot, rules = self.snapshot(), Rules(self.now)
        plan = evaluate(snapshot, self.queue.shapes, rules)
        recorded = evaluate(replace(snapshot, kept=None), self.queue.shapes, rules)
        assert (recorded.decisions, recorded.bookings) == (plan.decisions, plan.bookings)
        assert check(plan.after) == []
        for decision in plan.decisions:
            placement = machine.placed(decision, 1)
            self.queue.drop(placement.job_id)
            self.placements[placement.id] = placement
            self.overview.place(held_by(placement))
        self.bookings = plan.bookings
        self.overview.book(plan.bookings)

    def leaves(self, name: str) -> None:
        del self.nodes[name]
        self.bookings = {node: each for node, each in self.bookings.items() if node != name}

    def end(self, run: str) -> None:
        del self.placements[run]
        self.overview.free(run)

    def afresh(self) -> Snapshot:
        found = snapshot_of(self.nodes.values(), self.placements.values(), self.now, SILENT_AFTER, self.typical)
        return replace(found, bookings=self.bookings)


@given(st.data())
def test_what_is_kept_is_what_would_be_found_anew(data: st.DataObject) -> None:
    """After any changes of nodes, placements, time and demand, kept views, rows and prices equal fresh ones."""
    house = House()
    shapes = data.draw(st.lists(SHAPES, min_size=1, max_size=3))
    for _ in range(data.draw(st.integers(1, 8))):
        happens = data.draw(st.sampled_from(("nodes", "left", "jobs", "ends", "time", "demand")))
        if happens == "nodes":
            house.nodes |= {node.id: node.but(last_seen_at=house.now) for node in data.draw(NODES)}
        elif happens == "left" and house.nodes:
            house.leaves(data.draw(st.sampled_from(sorted(house.nodes))))
        elif happens == "jobs":
            house.run(data.draw(REQUESTS))
        elif happens == "ends" and house.placements:
            house.end(data.draw(st.sampled_from(sorted(house.placements))))
        elif happens == "time":
            state = data.draw(st.sampled_from(NodeState))
            house.nodes = {name: node.but(state=state) for name, node in house.nodes.items()}
            house.now += timedelta(seconds=data.draw(st.sampled_from((-20, 1, 10, 15, 700))))
        elif happens == "demand":
            house.typical = data.draw(something_typical())
        kept, fresh = house.snapshot(), house.afresh()
        assert dict(kept.nodes) == dict(fresh.nodes)
        assert dict(kept.live) == dict(fresh.live)
        assert kept.bookings == fresh.bookings
        used = [(each.used_cpu, each.used_memory, len(each.given)) for each in fresh.nodes.values()]
        assert (
            kept.boards().open.load.used
            == fresh.boards().open.load.used
            == tuple(map(sum, zip((0, 0, 0), *used, strict=True)))
        )
        assert kept.boards().open.load.capacity == fresh.boards().open.load.capacity
        assert kept.boards().open.fragmentation() == pytest.approx(fresh.boards().open.fragmentation())
        for board, anew, names in zip(kept.boards(), fresh.boards(), (kept.nodes, kept.bookings), strict=True):
            assert rows(board, names) == rows(anew, names)
            for shape in shapes:
                roomy = set(board.with_room(shape))
                assert board.has_room(shape) == bool(roomy)
                assert roomy == {name for name, price in prices(anew, shape, names).items() if price < np.inf}
                assert prices(board, shape, names) == pytest.approx(prices(anew, shape, names))
                assert feasible.counted(board, shape) == feasible.counted(anew, shape)


@given(NODES, REQUESTS, something_typical())
def test_a_plan_leaves_what_is_kept_as_it_was(
    nodes: list[Node], requests: list[PlacementRequest], typical: tuple[Typical, ...]
) -> None:
    """What a plan tries is taken back: the same question gets the same answer, and a recorded snapshot too."""
    overview = Overview(SILENT_AFTER)
    by_name = {node.id: node for node in nodes}
    snapshot = overview.snapshot(by_name, NOW, typical)
    before = rows(snapshot.boards().open, snapshot.nodes)
    first = evaluate(snapshot, a_queue(*requests).shapes, RULES)
    assert rows(snapshot.boards().open, snapshot.nodes) == before
    again = evaluate(overview.snapshot(by_name, NOW, typical), a_queue(*requests).shapes, RULES)
    recorded = evaluate(Snapshot(snapshot.nodes, {}, typical), a_queue(*requests).shapes, RULES)
    assert first.decisions == again.decisions == recorded.decisions
    assert check(first.after) == []
    assert first.load == first.after.boards().open.load


@given(NODES, REQUESTS, SHAPES)
def test_rows_give_the_reasons_that_their_nodes_give(
    nodes: list[Node], requests: list[PlacementRequest], shape: Shape
) -> None:
    """What a board says of all its rows at once is what its nodes say one by one, in a plan and afterwards."""
    plan = evaluate(a_snapshot(nodes), a_queue(*requests).shapes, RULES)
    for each in (shape, *plan.blocked):
        expected = feasible.reasons(plan.after.nodes.values(), each, feasible.NOW)
        assert feasible.counted(replace(plan.after, bookings={}).boards().open, each) == expected
    for each, found in plan.blocked.items():
        assert found == feasible.reasons(plan.after.nodes.values(), each, feasible.NOW)


@given(NODES, SHAPES, something_typical())
def test_there_is_a_price_where_there_is_room(nodes: list[Node], shape: Shape, typical: tuple[Typical, ...]) -> None:
    """The filters that explain and the arrays that decide say the same."""
    snapshot = a_snapshot(nodes, typical=typical)
    passing = {node.id for node in feasible.passing(snapshot.nodes.values(), shape, feasible.NOW)}
    found = prices(snapshot.boards().open, shape, snapshot.nodes)
    assert {name for name, price in found.items() if price < np.inf} == passing
    able = feasible.passing([node for node in snapshot.nodes.values() if node.ready], shape, feasible.EVER)
    assert set(snapshot.boards().open.able(shape)) == {node.id for node in able}


def worth(node: NodeView, typical: tuple[Typical, ...]) -> float:
    """Return how many of a node's GPUs typical tasks could use, by the definition, one task at a time."""
    total = 0.0
    for shape, share in typical:
        if not shape.gpus or not runs(node.room.home, shape):
            continue
        times, free, full = 0, 0.0, 0.0
        for uuid, device in node.devices.items():
            part = takes(device, shape)
            if part < NEVER and node.free_mib[uuid] >= part:
                fit = node.free_mib[uuid] // part
                times, free, full = times + fit, free + node.free_mib[uuid] / device.mib, full + fit * part / device.mib
        tasks = times // shape.gpus
        room = min(node.free_cpu / max(1, shape.cpu), node.free_memory / max(1, shape.memory))
        if tasks and room >= 1:
            together = full * tasks * shape.gpus / times * min(1.0, room / tasks)
            total += share * ((1 - TOGETHER) * free + TOGETHER * together)
    return total


@given(NODES, REQUESTS, something_typical())
def test_the_price_is_what_typical_tasks_lose(
    nodes: list[Node], requests: list[PlacementRequest], typical: tuple[Typical, ...]
) -> None:
    """The price of a decision is the loss by the definition, and the room that is left."""
    snapshot = a_snapshot(nodes, typical=typical)
    most = np.array([view.room.size for view in snapshot.nodes.values()]).max(axis=0, initial=1)
    for request in requests[:3]:
        plan = evaluate(snapshot, a_queue(request).shapes, RULES)
        for decision in plan.decisions:
            before, after = snapshot.nodes[decision.node], plan.after.nodes[decision.node]
            idle = sum(free / after.devices[uuid].mib for uuid, free in after.free_mib.items())
            left = (after.free_cpu / most[0] + after.free_memory / most[1] + idle / most[2]) / 3
            price = prices(snapshot.boards().open, decision.entry.shape, snapshot.nodes)[decision.node]
            assert price == pytest.approx(worth(before, typical) - worth(after, typical) + FIT * left, abs=1e-6)


def typically(**asked: Any) -> tuple[Typical, ...]:
    return (Typical(task_of(shape_of(a_run(**asked))), 1.0),)


def test_fragmentation_is_what_is_free_and_of_no_use() -> None:
    """Of one GPU and a half, a task that needs three quarters of one can use one; one that needs a quarter, all."""
    node = a_node(gpus=[a_gpu("1"), a_gpu("2")], gpu_sharing=True)
    snapshot = a_snapshot([node], [a_placement(9, gpus=("GPU-1",), share=8 * 1024)])
    assert snapshot.fragmentation(typically(gpu_share=12 * GIB)) == pytest.approx(1 / 3)
    assert snapshot.fragmentation(typically(gpu_share=4 * GIB)) == pytest.approx(0)
    assert snapshot.fragmentation(typically(gpu_share=4 * GIB, cpu=64)) == pytest.approx(1)


def test_a_share_goes_where_it_breaks_no_whole_gpu() -> None:
    """Where whole GPUs are mostly asked, shares are put together; alone, best fit would fill the smaller node."""
    nodes = [
        a_node("n1", cpu=2, memory=8 * GIB, gpus=[a_gpu("1")], gpu_sharing=True),
        a_node("n2", cpu=16, memory=64 * GIB, gpus=[a_gpu("2"), a_gpu("3")], gpu_sharing=True),
    ]
    held = [a_placement(9, "n2", gpus=("GPU-3",), share=8 * 1024, gpu_share=8 * GIB)]
    queue = a_queue(a_request(1, gpu_share=8 * GIB))
    (decision,) = evaluate(a_snapshot(nodes, held, typically(gpus=1)), queue.shapes, RULES).decisions
    assert (decision.node, decision.gpus, decision.share) == ("n2", ("GPU-3",), 8 * 1024)
    (decision,) = evaluate(a_snapshot(nodes, held), queue.shapes, RULES).decisions
    assert decision.node == "n1"


def test_a_gpu_is_shared_only_where_the_pool_or_the_map_allows_it() -> None:
    """Elsewhere a share takes the whole GPU, and nobody gets the rest."""
    requests = [a_request(number, gpu_share=4 * GIB, cpu=0.1, memory=0) for number in range(5)]
    for sharing, placed in ((True, 4), (False, 1)):
        plan = evaluate(a_snapshot([a_node(gpus=[a_gpu("1")], gpu_sharing=sharing)]), a_queue(*requests).shapes, RULES)
        assert [decision.share for decision in plan.decisions] == [4 * 1024 if sharing else 0] * placed
        assert check(plan.after) == []
    allowed = [each.but(request=each.request.but(gpu_sharing=True)) for each in requests]
    plan = evaluate(a_snapshot([a_node(gpus=[a_gpu("1")])]), a_queue(*allowed, a_request(9, gpus=1)).shapes, RULES)
    assert [decision.share for decision in plan.decisions] == [4 * 1024] * 4


def test_an_instance_of_a_divided_gpu_is_not_shared() -> None:
    """A share takes all of a MIG instance, whoever allows that it is shared."""
    gpus = [a_gpu("1", memory=10 * GIB, parent="GPU-0"), a_gpu("2", memory=10 * GIB, parent="GPU-0")]
    requests = [a_request(number, gpu_share=GIB, cpu=0.1, memory=0) for number in range(3)]
    allowed = [each.but(request=each.request.but(gpu_sharing=True)) for each in requests]
    plan = evaluate(a_snapshot([a_node(gpus=gpus, gpu_sharing=True)]), a_queue(*allowed).shapes, RULES)
    assert {(decision.gpus, decision.share) for decision in plan.decisions} == {(("GPU-1",), 0), (("GPU-2",), 0)}


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize(("others", "placed"), [(0, 1), (20 << 20, 1), (GIB, 0), (16 * GIB, 0)])
def test_what_other_software_uses_is_not_given_away(*, sharing: bool, others: int, placed: int) -> None:
    """A share waits where other software leaves too little of a GPU, and hears so; a whole GPU is given as it is."""
    snapshot = a_snapshot([a_node(gpus=[a_gpu("1", others=others)], gpu_sharing=sharing)])
    assert len(evaluate(snapshot, a_queue(a_request(1, gpu_share=16 * GIB)).shapes, RULES).decisions) == placed
    if not placed:
        shape, nodes = shape_of(a_run(gpu_share=16 * GIB)), snapshot.nodes.values()
        (reason,) = feasible.reasons(nodes, shape, feasible.NOW)
        assert (reason.code, "MiB of one are free" in reason.message) == ("gpu_share_busy", True)
        assert feasible.reasons(nodes, shape, feasible.EVER) == ()
    assert len(evaluate(snapshot, a_queue(a_request(2, gpus=1)).shapes, RULES).decisions) == 1


def test_shares_fit_beside_other_software() -> None:
    """What is left of a GPU beside other software is shared, and no more."""
    requests = [a_request(number, gpu_share=4 * GIB, cpu=0.1, memory=0) for number in range(5)]
    node = a_node(gpus=[a_gpu("1", others=5 * GIB)], gpu_sharing=True)
    plan = evaluate(a_snapshot([node]), a_queue(*requests).shapes, RULES)
    assert [decision.share for decision in plan.decisions] == [4 * 1024] * 2
    grown = a_snapshot(
        [node.but(gpus=(a_gpu("1", others=12 * GIB),))], [a_placement(9, gpus=("GPU-1",), share=8 * 1024)]
    )
    assert dict(grown.nodes["n1"].free_mib) == {"GPU-1": 0}
    held = held_by(a_placement(9, gpus=("GPU-1",), share=8 * 1024, gpu_share=8 * GIB))
    assert using_of(held, grown.nodes["n1"]).gpus == 500  # thousandths of the GPU, whoever else is there


def test_whole_gpus_with_little_memory_are_given_first() -> None:
    """What does not need much leaves the larger GPUs of a node to others."""
    gpus = [a_gpu("large", memory=80 * GIB), a_gpu("small"), a_gpu("middle", memory=40 * GIB)]
    plan = evaluate(a_snapshot([a_node(gpus=gpus)]), a_queue(a_request(1, gpus=2)).shapes, RULES)
    assert [decision.gpus for decision in plan.decisions] == [("GPU-small", "GPU-middle")]


def test_chance_decides_between_equals_only() -> None:
    """Nodes that are equally good are told apart by id, or by chance where that is asked; others are no choice."""
    nodes = [a_node("n1", cpu=8), a_node("n2"), a_node("n3"), a_node("n4", state=NodeState.DRAINING)]
    offered: list[list[str]] = []

    def chance(names: Any) -> str:
        offered.append(list(names))
        return str(names[-1])

    queue = a_queue(a_request(1))
    assert [each.node for each in evaluate(a_snapshot(nodes), queue.shapes, RULES).decisions] == ["n2"]
    assert [each.node for each in evaluate(a_snapshot(nodes), queue.shapes, RULES, chance).decisions] == ["n3"]
    assert offered == [["n2", "n3"]]


def test_rows_are_in_the_order_of_the_nodes() -> None:
    """Nodes that come at once have their rows by their ids: where many are alike, a plan looks at the first of them."""
    overview = Overview(SILENT_AFTER)
    nodes = {f"n{number:02}": a_node(f"n{number:02}") for number in range(50)}
    assert overview.snapshot(nodes, NOW).boards().open.names[:50] == list(nodes)


def test_a_row_that_did_not_change_is_not_weighed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a placement, only its node's row is looked at for a shape that was asked before."""
    looked: list[int] = []
    plain = Board._may

    def counting(self: Board, column: Any, some: Any) -> Any:
        looked.append(len(some))
        return plain(self, column, some)

    monkeypatch.setattr(Board, "_may", counting)
    overview, nodes = Overview(SILENT_AFTER), {f"n{number}": a_node(f"n{number}") for number in range(50)}
    for number in range(3):
        plan = evaluate(overview.snapshot(nodes, NOW), a_queue(a_request(number)).shapes, RULES)
        overview.place(plan.decisions[0].held)
    assert looked == [50, 1, 1]


def test_rows_that_are_kept_in_reserve_count_for_nothing() -> None:
    """When a node joins, room is made for more than one; what is free there is of use to nobody."""
    nodes = {f"n{number}": a_node(f"n{number}", gpus=[a_gpu(str(number))]) for number in range(4)}
    overview, typical = Overview(SILENT_AFTER), typically(gpus=2)
    overview.snapshot(dict(list(nodes.items())[:3]), NOW, typical)
    board = overview.snapshot(nodes, NOW, typical).boards().open
    assert len(board.cpu) > len(nodes)
    assert board.fragmentation() == 1
    overview.snapshot(nodes, NOW, typically(gpus=1))
    assert board.fragmentation() == 0
