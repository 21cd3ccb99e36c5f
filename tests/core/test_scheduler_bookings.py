"""Room that is kept for wide jobs: who books, who may use it meanwhile, and that it starves nobody."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gurney.model.job import PlacementRequest, Priority
from gurney.model.resources import Quota
from gurney.model.run import Node, NodeState, Placement
from services.scheduler import bookings, machine
from services.scheduler.bookings import NODES
from services.scheduler.forecast import outlook
from services.scheduler.order import Queue, entry_of
from services.scheduler.overview import Overview
from services.scheduler.plan import Plan, check
from services.scheduler.policy import evaluate
from services.scheduler.predict import UNKNOWN_S, Durations, opening
from services.scheduler.snapshot import held_by
from services.scheduler.turns import OVERDUE_AFTER, Rules
from services.simulate import queue, trace
from services.simulate.trace import Task
from tests.core.scheduler_builders import (
    GIB,
    MODEST_ASKS,
    NOW,
    SILENT_AFTER,
    a_gpu,
    a_node,
    a_placement,
    a_request,
    a_snapshot,
    job_id,
)


class Site:
    """A scheduler's memory, driven by hand."""

    def __init__(self, *nodes: Node, quotas: Mapping[str, Quota] | None = None) -> None:
        self.nodes = {node.id: node for node in nodes}
        self.queue = Queue()
        self.durations = Durations()
        self.now = NOW
        self._overview = Overview(SILENT_AFTER)
        self._quotas = quotas or {}
        self.placements: dict[str, Placement] = {}

    @property
    def rules(self) -> Rules:
        return Rules(self.now, durations=self.durations, quotas=self._quotas)

    def want(self, *requests: PlacementRequest) -> Plan:
        """Take jobs in, and place what fits until nothing more does; returns the last plan."""
        for request in requests:
            self.queue.add(entry_of(request, self.now))
        nodes = {name: node.but(last_seen_at=self.now) for name, node in self.nodes.items()}
        while True:
            plan = evaluate(self._overview.snapshot(nodes, self.now), self.queue.shapes, self.rules)
            assert check(plan.after) == []
            for decision in plan.decisions:
                placement = machine.placed(decision, 1)
                self.queue.drop(placement.job_id)
                self.placements[placement.job_id] = placement
                self._overview.place(held_by(placement))
            assert all(self.queue.get(each.job_id) for each in plan.bookings.values())
            assert len({each.job_id for each in plan.bookings.values()}) == len(plan.bookings)
            if not self._overview.book(plan.bookings):
                return plan

    def end(self, *numbers: int, after_s: float = 1.0) -> Plan:
        """Let jobs end, or be canceled, a moment later."""
        self.now += timedelta(seconds=after_s)
        for number in numbers:
            self.queue.drop(job_id(number))
            if placement := self.placements.pop(job_id(number), None):
                self._overview.free(placement.id)
        return self.want()

    def on(self, number: int) -> str | None:
        """Return the node of a job."""
        placement = self.placements.get(job_id(number))
        return placement.node if placement else None


def a_server(name: str = "n1", gpus: int = 2, **more: object) -> Node:
    return a_node(name, gpus=[a_gpu(f"{name}-{each}") for each in range(gpus)], cpu=16, memory=64 * GIB, **more)


def of_map(digest: str, request: PlacementRequest) -> PlacementRequest:
    return request.but(request=request.request.but(digest=digest))


def test_a_wide_job_gets_its_turn_however_many_narrow_ones_come() -> None:
    """GPUs that become free one by one stay free for the job that has booked them, and it starts with the last."""
    site = Site(a_server())
    site.want(a_request(1, gpus=1), a_request(2, gpus=1))
    plan = site.want(a_request(3, gpus=2), *(a_request(number, gpus=1) for number in range(4, 9)))
    assert plan.bookings["n1"].job_id == job_id(3)
    site.end(1)
    assert [site.on(number) for number in range(3, 9)] == [None] * 6
    site.end(2)
    assert site.on(3) == "n1"
    assert site.want().bookings == {}


def test_wide_is_what_asks_half_of_a_usual_node_for_it() -> None:
    """Two GPUs are booked on nodes of four, not on nodes of eight; only those count that could hold the job now."""
    modest, large, other = a_server("n1", gpus=4), a_server("n2", gpus=8), a_server("n3", gpus=8)
    models = large.but(gpus=tuple(gpu.but(model="B") for gpu in large.gpus))
    for node, is_wide in ((large, False), (models, True), (large.but(state=NodeState.DRAINING), True)):
        site = Site(modest, large)
        site.want(*(a_request(number, gpus=1, gpu_model="A") for number in range(100, 112)))
        assert site.want(a_request(1, gpus=2, gpu_model="A")).bookings == {}
        site.nodes["n2"] = node
        assert bool(site.want().bookings) == is_wide
    for nodes, is_wide in (((modest, large, other), False), ((modest, a_server("n0", gpus=4), large), True)):
        site = Site(*nodes)
        site.want(*(a_request(number, gpus=1) for number in range(100, 120)))
        assert bool(site.want(a_request(1, gpus=2)).bookings) == is_wide


def test_what_is_free_already_is_kept_at_once() -> None:
    """Nothing has to change on a node for what is booked there to be kept."""
    site = Site(a_server())
    site.want(a_request(1, gpus=1))
    site.want(a_request(2, gpus=2))
    site.now += timedelta(seconds=1)
    site.want(a_request(3, gpus=1))
    assert site.on(3) is None


def test_what_is_kept_is_lent_to_those_who_are_gone_by_then() -> None:
    """A run that is expected to end before the booked GPUs are needed may have them, a longer one may not."""
    site = Site(a_server())
    site.durations.note("sha256:short", 60)
    site.durations.note("sha256:long", 2 * UNKNOWN_S)
    site.want(a_request(1, gpus=1), a_request(2, gpus=1))
    site.want(a_request(3, gpus=2))
    site.end(1)
    plan = site.want(of_map("sha256:long", a_request(4, gpus=1)), of_map("sha256:short", a_request(5, gpus=1)))
    assert (site.on(4), site.on(5)) == (None, "n1")
    site.end(5)
    plan = site.want()
    (reason,) = plan.blocked[next(shape for shape in plan.blocked if shape.gpus == 1)]
    assert (reason.code, reason.count) == ("booked", 1)


def test_a_higher_priority_does_not_wait_for_what_is_kept() -> None:
    """`immediate` takes booked room."""
    site = Site(a_server())
    site.want(a_request(1, gpus=1), a_request(2, gpus=1), a_request(3, gpus=2))
    site.end(1)
    site.want(a_request(4, gpus=1, priority=Priority.IMMEDIATE), a_request(5, gpus=1, priority=Priority.LOWER))
    assert (site.on(4), site.on(5)) == ("n1", None)


def test_what_is_not_kept_is_for_everybody() -> None:
    """Only as many GPUs, cores and bytes are kept as the job asks."""
    site = Site(a_server(gpus=4))
    site.want(*(a_request(number, gpus=1, cpu=1) for number in range(1, 5)))
    site.want(a_request(5, gpus=2, cpu=12))
    site.end(1)
    assert site.want(a_request(6, gpus=1, cpu=1)).bookings["n1"].job_id == job_id(5)
    site.end(2, 3)
    site.want(a_request(7, gpus=1, cpu=4))
    assert (site.on(5), site.on(6), site.on(7)) == ("n1", "n1", None)
    site = Site(a_server(gpus=4))
    site.want(*(a_request(number, gpus=1, cpu=1, memory=GIB) for number in range(1, 5)))
    site.want(a_request(9, cpu=1, memory=GIB), a_request(5, gpus=3, cpu=8, memory=32 * GIB))
    site.end(9)
    site.want(a_request(6, cpu=8, memory=0), a_request(7, cpu=3, memory=0), a_request(8, cpu=0.1, memory=32 * GIB))
    assert (site.on(6), site.on(7), site.on(8)) == (None, "n1", None)
    site.want(a_request(10, cpu=4, memory=31 * GIB))
    assert site.on(10) == "n1"


def test_a_booking_goes_with_its_job() -> None:
    """When the job is canceled, or a later attempt replaces it, what was kept is there for others at once."""
    site = Site(a_server())
    site.want(a_request(1, gpus=1), a_request(2, gpus=1), a_request(3, gpus=2), a_request(4, gpus=1))
    site.end(1)
    assert site.on(4) is None
    assert site.end(3).bookings == {}
    assert site.on(4) == "n1"


@pytest.mark.parametrize("node", [{"state": NodeState.DRAINING}, {"state": NodeState.LOST}, None])
def test_a_node_that_does_not_do_any_more_is_not_waited_for(node: Mapping[str, object] | None) -> None:
    """Who has booked on a node that drains, is lost or leaves books on another."""
    site = Site(a_server("n1"), a_server("n2"))
    site.want(*(a_request(number, gpus=1) for number in range(1, 5)))
    (first,) = site.want(a_request(5, gpus=2)).bookings
    if node is None:
        del site.nodes[first]
    else:
        site.nodes[first] = site.nodes[first].but(**node)
    (other,) = site.want().bookings
    assert {first, other} == {"n1", "n2"}


def test_a_run_that_is_late_is_not_waited_for_where_another_node_is_sooner() -> None:
    """When the booked room should be there and is not, the job books where it is expected first by then."""
    site = Site(a_server("n1", gpus=2), a_server("n2", gpus=2))
    site.durations.note("sha256:short", 60)
    site.durations.note("sha256:middle", 100)
    site.want(of_map("sha256:short", a_request(1, gpus=2)), of_map("sha256:middle", a_request(2, gpus=2)))
    plan = site.want(a_request(3, gpus=2))
    assert list(plan.bookings) == [site.on(1)]
    site.now += timedelta(seconds=30)
    assert site.want().bookings == plan.bookings
    site.now += timedelta(seconds=40)
    assert list(site.want().bookings) == [site.on(2)]


def test_when_one_of_the_runs_has_ended_the_soonest_node_is_booked_anew() -> None:
    """What is known by then counts: the last run of the booked node may take longer than was thought."""
    site = Site(a_server("n1"), a_server("n2"))
    site.want(*(of_map(f"sha256:{number}", a_request(number, gpus=1)) for number in range(1, 5)))
    first = next(iter(site.want(a_request(5, gpus=2)).bookings))
    here = [number for number in range(1, 5) if site.on(number) == first]
    site.durations.note(f"sha256:{here[1]}", 9 * UNKNOWN_S)
    assert set(site.want().bookings) == {first}
    assert set(site.end(here[0]).bookings) == {"n1", "n2"} - {first}


def test_of_nodes_that_are_as_soon_that_is_booked_where_fewer_runs_must_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is partly free already goes before others, also where few are looked at."""
    for looked_at in (bookings.LOOKED_AT, 1):
        monkeypatch.setattr(bookings, "LOOKED_AT", looked_at)
        site = Site(a_server("n1"), a_server("n2"))
        site.want(*(a_request(number, gpus=1) for number in range(1, 5)))
        site.end(next(number for number in range(1, 5) if site.on(number) == "n2"), after_s=0)
        assert set(site.want(a_request(5, gpus=2)).bookings) == {"n2"}


def test_who_has_booked_keeps_his_place_among_equals() -> None:
    """A job that comes later and is shorter passes him in the line, and books when there is another node."""
    site = Site(a_server())
    site.durations.note("sha256:short", 10)
    site.want(a_request(1, gpus=1), a_request(2, gpus=1), a_request(3, gpus=2))
    plan = site.want(of_map("sha256:short", a_request(4, gpus=2, age_s=600)))
    assert plan.bookings["n1"].job_id == job_id(3)
    site.end(1)
    assert site.want().bookings["n1"].job_id == job_id(3)


def test_who_has_booked_starts_in_his_turn() -> None:
    """What becomes free at once goes to a higher priority, and to who is older and before him in the line, first."""
    for other in (a_request(3, gpus=1, priority=Priority.IMMEDIATE), a_request(3, gpus=1, age_s=900)):
        site = Site(a_server())
        site.want(a_request(1, gpus=2))
        site.want(a_request(2, gpus=2), other)
        site.end(1)
        assert (site.on(2), site.on(3)) == (None, "n1")
        site.end(3)
        assert site.on(2) == "n1"


def test_narrow_jobs_do_not_starve_beside_wide_ones_that_never_cease_to_come() -> None:
    """On one server a narrow job gets its turn before wide ones of a lower priority, or that are younger."""
    for other in (a_request(500, gpus=1, priority=Priority.IMMEDIATE), a_request(500, gpus=1, age_s=60)):
        site = Site(a_server())
        site.want(a_request(1, gpus=2, priority=Priority.LOWER))
        site.want(other, a_request(2, gpus=2, priority=Priority.LOWER))
        passed = 0
        while site.on(500) is None:
            passed += 1
            assert passed < 3
            site.want(a_request(passed + 2, gpus=2, priority=Priority.LOWER, age_s=-passed))
            site.end(passed, after_s=UNKNOWN_S)


def test_a_higher_priority_books_what_was_kept_for_a_lower_one() -> None:
    """Of the same shape or not, on the only node."""
    for cpu in (1, 2):
        site = Site(a_server())
        site.want(a_request(1, gpus=1), a_request(2, gpus=1), a_request(3, gpus=2, priority=Priority.LOWER))
        plan = site.want(a_request(4, gpus=2, cpu=cpu, priority=Priority.HIGHER), a_request(5, gpus=1))
        assert plan.bookings["n1"].job_id == job_id(4)
        site.end(1)
        assert site.on(5) is None
        site.end(2)
        assert (site.on(3), site.on(4), site.on(5)) == (None, "n1", None)


@pytest.mark.parametrize("priority", [Priority.NORMAL, Priority.IMMEDIATE])
def test_short_runs_are_lent_nothing_of_who_has_waited_for_a_day(priority: Priority) -> None:
    """Whatever their priorities, a run that is expected to be over in time may be late."""
    site = Site(a_server())
    site.durations.note("sha256:short", 60)
    site.want(a_request(1, gpus=1), a_request(2, gpus=1))
    wide = a_request(3, gpus=2, priority=priority, age_s=OVERDUE_AFTER.total_seconds())
    assert site.want(wide).bookings
    site.end(1)
    site.want(of_map("sha256:short", a_request(4, gpus=1)))
    assert site.on(4) is None


def test_what_is_kept_for_who_has_waited_for_a_day_is_lent_no_more() -> None:
    """Where runs are late again and again, a wide job starts in the end: borrowers are late, too."""
    site = Site(a_server())
    site.want(a_request(1, gpus=1), a_request(2, gpus=1), a_request(3, gpus=2))
    for number in range(4, 60):
        site.want(a_request(number, gpus=1, age_s=-number))
        running = min((each for each in site.placements if each != job_id(3)), default=None)
        if site.on(3) or running is None:
            break
        site.end(int(running[4:]), after_s=3600)
    assert site.on(3) == "n1"
    assert site.now - NOW < OVERDUE_AFTER + timedelta(hours=3)


def test_when_many_bookings_are_past_at_once_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """All those that had booked book anew in the same plan, and nobody takes what they have gathered."""
    monkeypatch.setattr(bookings, "NODES", 1)
    names = [f"n{number}" for number in range(6)]
    site = Site(*(a_server(name) for name in names))
    site.want(*(a_request(number, gpus=1) for number in range(100, 112)))
    wide = [a_request(number, gpus=2) for number in range(1, 7)]
    site.want(*wide)
    for _ in names:
        site.want()
    assert set(site.want().bookings) == {*names}
    site.now += timedelta(seconds=2 * UNKNOWN_S)
    assert {each.job_id for each in site.want().bookings.values()} == {each.job_id for each in wide}


def test_a_node_that_lost_an_attempt_is_booked_last() -> None:
    """A job that avoids a node books another, though it is later."""
    site = Site(a_server("n1"), a_server("n2"))
    site.durations.note("sha256:long", 9 * UNKNOWN_S)
    site.want(of_map("sha256:0", a_request(1, gpus=2)), of_map("sha256:long", a_request(2, gpus=2)))
    soon, late = site.on(1), site.on(2)
    assert soon
    assert set(site.want(a_request(3, gpus=2, avoid=(soon,))).bookings) == {late}


def test_few_nodes_are_booked_and_the_first_in_line_book_them() -> None:
    """One node of ten; what could never book keeps nobody from it."""
    nodes = [a_server(f"n{number}") for number in range(2 * NODES)]
    site = Site(*nodes)
    site.want(*(a_request(number, gpus=1) for number in range(100, 100 + 4 * NODES)))
    never = [a_request(number, gpus=3 + number, age_s=900) for number in range(1, 9)]
    plan = site.want(*never, *(a_request(number, gpus=2, age_s=100 - number) for number in range(10, 20)))
    assert {each.job_id for each in plan.bookings.values()} == {job_id(10), job_id(11)}
    plan = site.want(a_request(30, gpus=2, priority=Priority.HIGHER))
    assert {each.job_id for each in plan.bookings.values()} == {job_id(30), job_id(10)}


def test_whoever_has_waited_for_a_day_books() -> None:
    """No wait is without bound: a job without GPUs that needs a whole node gets it in the end."""
    site = Site(a_node(cpu=4))
    site.durations.note("sha256:0", 2 * OVERDUE_AFTER.total_seconds())
    site.want(*(a_request(number, cpu=2) for number in (1, 2)))
    wide = a_request(3, cpu=4)
    assert site.want(wide, a_request(4, cpu=2)).bookings == {}
    site.now += OVERDUE_AFTER
    site.want()
    site.end(1)
    assert (site.on(3), site.on(4)) == (None, None)
    site.end(2)
    assert site.on(3) == "n1"


def test_who_may_hold_no_more_books_nothing() -> None:
    """A job that its project's quota keeps back keeps no room from others."""
    site = Site(a_server(), quotas={"*": Quota(gpus=2)})
    site.want(a_request(1, gpus=1).but(project="p"), a_request(2, gpus=1).but(project="q"))
    assert site.want(a_request(3, gpus=2).but(project="p"), a_request(4, gpus=1).but(project="q")).bookings == {}
    site.end(2)
    assert site.on(4) == "n1"
    site.end(1)
    assert {each.job_id for each in site.want().bookings.values()} == {job_id(3)}
    site.end(4)
    assert site.on(3) == "n1"


def test_the_estimate_of_who_has_booked_is_its_time() -> None:
    """A job that has booked is told when its room is expected to be there."""
    nodes = [a_server("n1")]
    snapshot = a_snapshot(nodes, [a_placement(1, gpus=("GPU-n1-0",)), a_placement(2, gpus=("GPU-n1-1",))])
    entry = entry_of(a_request(3, gpus=2), NOW)
    queue = Queue()
    queue.add(entry)
    plan = evaluate(snapshot, queue.shapes, Rules(NOW))
    snapshot = replace(snapshot, bookings=plan.bookings)
    assert outlook(entry, queue.lanes, snapshot, Rules(NOW + timedelta(seconds=100))) == (1, UNKNOWN_S - 100)


@given(
    st.lists(st.builds(lambda number, ask: a_request(number, **ask), st.integers(1, 40), MODEST_ASKS), max_size=12),
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 1000)), max_size=12),
    st.integers(2, 3),
)
def test_who_has_booked_is_never_put_off_by_others(
    requests: Sequence[PlacementRequest], events: Sequence[tuple[int, int]], gpus: int
) -> None:
    """If no run is late, the job that booked first starts when it was told, or before, whoever else comes."""
    site = Site(a_server("n0", gpus=3), a_server("n1", gpus=3))
    site.want(*(a_request(number, gpus=1) for number in range(50, 56)))
    plan = site.want(a_request(60, gpus=gpus, age_s=3600))
    (booking,) = plan.bookings.values()
    coming = [*requests]
    times = sorted({*(after for _, after in events if NOW + timedelta(seconds=after) < booking.until), int(UNKNOWN_S)})
    for after in times:
        at = NOW + timedelta(seconds=after)
        while ends := sorted((_end_of(each), each.job_id) for each in site.placements.values() if _end_of(each) <= at):
            site.now, job = ends[0]
            site.end(int(job[4:]), after_s=0)
        site.now = at
        site.want(*coming[:3])
        del coming[:3]
    assert site.on(60) is not None
    assert site.placements[job_id(60)].placed_at <= booking.until


def _end_of(placement: Placement) -> datetime:
    return placement.placed_at + timedelta(seconds=UNKNOWN_S - 1)


def test_an_opening_is_when_the_last_of_those_ends_that_it_takes() -> None:
    """GPUs count when all that is shared of them is free, cores and bytes with any run's end."""
    node = a_node(gpus=[a_gpu("0"), a_gpu("1")], cpu=4, memory=8 * GIB, gpu_sharing=True)
    share = 4 * GIB
    runs = [
        a_placement(1, gpus=("GPU-0",), share=4096, gpu_share=share, cpu=1),
        a_placement(2, gpus=("GPU-0",), share=4096, gpu_share=share, cpu=1),
        a_placement(3, gpus=("GPU-1",), cpu=1),
    ]
    for number, left_s in enumerate((10, 90, 50)):
        runs[number] = runs[number].but(placed_at=NOW - timedelta(seconds=UNKNOWN_S - left_s))
    view = a_snapshot([node], runs).nodes["n1"]
    shape = entry_of(a_request(9, gpus=2, cpu=1), NOW).shape
    found = opening(view, shape, Durations(), NOW)
    assert found is not None
    assert (found.in_s, set(found.gpus), len(found.after)) == (90, {"GPU-0", "GPU-1"}, 3)
    found = opening(view, entry_of(a_request(9, gpus=1, cpu=1), NOW).shape, Durations(), NOW)
    assert found is not None
    assert (found.in_s, found.gpus) == (50, ("GPU-1",))
    assert opening(view, entry_of(a_request(9, gpus=3), NOW).shape, Durations(), NOW) is None
    names = tuple(f"GPU-{number}" for number in range(8))
    wide = a_placement(1, gpus=names)
    view = a_snapshot([a_node(gpus=[a_gpu(name.removeprefix("GPU-")) for name in names])], [wide]).nodes["n1"]
    found = opening(view, shape, Durations(), NOW)
    assert found is not None
    assert found.gpus == ("GPU-0", "GPU-1")


def test_wide_jobs_do_not_starve_in_a_busy_cluster() -> None:
    """In a replay where narrow jobs never cease to come, wide ones wait a fraction of what they do without booking."""
    nodes = [trace.node(f"n{each}", 64_000, 65536, 8, "A") for each in range(2)]
    narrow = [Task(trace.shape(1000, 1024, 1), at, 900.0, map=f"m{at % 3}") for at in range(0, 60_000, 56)]
    wide = [Task(trace.shape(8000, 8192, 8), at, 900.0, map="wide") for at in range(1000, 60_000, 12_000)]
    waits = {
        order: [wait for task, wait in queue.replay(nodes, [*narrow, *wide], (), order).waits if task.shape.gpus == 8]
        for order in ("gurney", "skip")
    }
    assert len(waits["gurney"]) == len(waits["skip"]) == len(wide)
    assert max(waits["gurney"]) < 0.5 * max(waits["skip"])
