"""Whose turn it is: fair shares, short runs first, bounded waits, quotas."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gurney.model.job import PlacementRequest, Priority
from gurney.model.resources import Quota
from services.scheduler.order import Lane, Queue
from services.scheduler.overview import Overview
from services.scheduler.policy import evaluate
from services.scheduler.predict import UNKNOWN_S, Durations
from services.scheduler.shape import Shape
from services.scheduler.shares import HALF_LIFE, Past, Shares, Using
from services.scheduler.snapshot import Held, snapshot_of
from services.scheduler.turns import OVERDUE_AFTER, Line, Rules
from tests.core.scheduler_builders import (
    NOW,
    RULES,
    SILENT_AFTER,
    a_gpu,
    a_node,
    a_placement,
    a_queue,
    a_request,
    a_snapshot,
    job_id,
    places,
    some_requests,
)

#: Project, priority, cores, hours of wait.
SOME_JOBS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(Priority), st.integers(1, 3), st.integers(0, 30)), max_size=20
)


def of(project: str, number: int, *, digest: str = "sha256:0", **more: object) -> PlacementRequest:
    request = a_request(number, **more)  # type: ignore[arg-type]
    return request.but(project=project, request=request.request.but(digest=digest))


def taken(queue: Queue, rules: Rules = RULES, *, cpu: float) -> list[str]:
    """Return the jobs that a node with so many cores gets, in order."""
    plan = evaluate(a_snapshot([a_node(cpu=cpu, memory=1 << 50)]), queue.shapes, rules)
    return [each.entry.job_id for each in plan.decisions]


def test_projects_take_turns() -> None:
    """Of two projects that have had nothing, each gets half, however many jobs of one came first."""
    jobs = [of("many", number, age_s=100 - number) for number in range(20)]
    jobs += [of("few", 50 + number) for number in range(4)]
    got = taken(a_queue(*jobs), cpu=8)
    assert sorted(got) == [job_id(number) for number in (0, 1, 2, 3, 50, 51, 52, 53)]


def test_who_had_much_lately_comes_later() -> None:
    """A project that has used the cluster waits behind one that has not, and less so as time goes by."""
    shares = Shares()
    shares.ended("much", 1.0, NOW - timedelta(hours=4), NOW)
    queue = a_queue(*(of("much", number, age_s=50) for number in range(4)), *(of("none", 10 + n) for n in range(4)))
    had = Rules(NOW, shares.had(NOW))
    # A share of 0.29 of the past is worth a quarter of the cluster: one of its four cores.
    assert len({job_id(10 + n) for n in range(4)} & set(taken(queue, had, cpu=4))) == 3
    later = NOW + 10 * HALF_LIFE
    assert shares.had(later)["much"] < 0.001


def test_a_live_job_counts() -> None:
    """What a project holds now counts as what it has had."""
    nodes = [a_node(cpu=4)]
    holds = [a_placement(90 + number).but(project="holds") for number in range(2)]
    queue = a_queue(*(of("holds", number, age_s=50) for number in range(4)), *(of("other", 10 + n) for n in range(4)))
    plan = evaluate(snapshot_of(nodes, holds, NOW, SILENT_AFTER), queue.shapes, RULES)
    assert {each.entry.lane.project for each in plan.decisions} == {"other"}
    assert plan.after.using["holds"].cpu == plan.after.using["other"].cpu == 2000


def test_priority_goes_before_fairness() -> None:
    """A project that holds everything still goes first where its job is more urgent."""
    nodes = [a_node(cpu=3)]
    holds = [a_placement(90).but(project="holds")]
    urgent = of("holds", 1, priority=Priority.HIGHER, cpu=2)
    plan = evaluate(snapshot_of(nodes, holds, NOW, SILENT_AFTER), a_queue(urgent, of("other", 2)).shapes, RULES)
    assert [each.entry.job_id for each in plan.decisions] == [job_id(1)]


def test_what_is_immediate_goes_by_age() -> None:
    """Neither what its project has had nor how long it runs puts an immediate job behind a younger one."""
    rules = Rules(NOW, {"much": 1.0})
    jobs = [of("much", 1, priority=Priority.IMMEDIATE, age_s=9), of("none", 2, priority=Priority.IMMEDIATE)]
    assert places(a_queue(*jobs), rules) == {job_id(1): 1, job_id(2): 2}


def test_short_runs_pass_until_the_long_has_waited() -> None:
    """Where earlier runs of a MAP were short its job goes first, and no more when the other has waited long enough."""
    durations = Durations()
    durations.note("short", 300)
    durations.note("long", 3000)
    rules = Rules(NOW, durations=durations)
    queue = a_queue(of("p", 1, digest="long", age_s=6000), of("p", 2, digest="short"))
    assert places(queue, rules) == {job_id(2): 1, job_id(1): 2}
    queue = a_queue(of("p", 1, digest="long", age_s=7000), of("p", 2, digest="short"))
    assert places(queue, rules) == {job_id(1): 1, job_id(2): 2}


def test_of_jobs_that_have_just_come_the_short_goes_first() -> None:
    """Nobody has waited yet: what is expected to be over first is begun first, whichever came first."""
    durations = Durations()
    durations.note("short", 300)
    durations.note("long", 3000)
    queue = a_queue(of("p", 1, digest="long"), of("p", 2, digest="short"))
    assert places(queue, Rules(NOW, durations=durations)) == {job_id(2): 1, job_id(1): 2}


@given(some_requests())
def test_who_has_waited_for_a_day_goes_first(requests: list[PlacementRequest]) -> None:
    """Neither shares nor short runs nor priority keep a job for longer, but for what is immediate."""
    overdue = of("had-all", 999, digest="long", age_s=OVERDUE_AFTER.total_seconds(), priority=Priority.LOWER)
    durations = Durations()
    durations.note("long", 1e6)
    rules = Rules(NOW, {"had-all": 1.0}, durations)
    immediate = sum(each.priority is Priority.IMMEDIATE for each in requests)
    older = sum(each.created_at < overdue.created_at for each in requests)
    assert places(a_queue(overdue, *requests), rules)[overdue.job_id] <= 1 + immediate + older


@pytest.mark.parametrize(
    ("quota", "got"),
    [(Quota(cpu=2), 2), (Quota(memory=3 << 30), 3), (Quota(gpus=1), 1), (Quota(), 4)],
    ids=["cpu", "memory", "gpus", "none"],
)
def test_a_quota_holds(quota: Quota, got: int) -> None:
    """A project gets no more than its quota, what it holds counted; the rest waits for that, and others do not."""
    node = a_node(cpu=16, memory=64 << 30, gpus=[a_gpu(str(number)) for number in range(8)])
    queue = a_queue(*(of("bound", number, gpus=1, age_s=9) for number in range(4)), of("free", 10, gpus=1))
    rules = Rules(NOW, quotas={"bound": quota})
    plan = evaluate(a_snapshot([node]), queue.shapes, rules)
    assert sum(each.entry.lane.project == "bound" for each in plan.decisions) == got
    assert sum(each.entry.lane.project == "free" for each in plan.decisions) == 1
    for entry in (entry for lane in queue.lanes.values() for entry in lane):
        if entry.job_id not in plan.after.live:
            (reason,) = plan.reasons(entry)
            assert (reason.code, "bound may hold" in reason.message) == ("quota", True)
    again = evaluate(plan.after, a_queue(of("bound", 20, gpus=1)).shapes, rules)
    assert len(again.decisions) == (quota == Quota())


def test_what_asks_too_much_of_a_quota_stops_nobody_who_asks_less() -> None:
    """A project that holds its GPUs goes on with jobs that need none; `*` is for those without a quota of their own."""
    node = a_node(cpu=16, memory=64 << 30, gpus=[a_gpu(str(number)) for number in range(8)])
    queue = a_queue(of("p", 1, gpus=2, age_s=9), of("p", 2), of("q", 3, gpus=2))
    plan = evaluate(a_snapshot([node]), queue.shapes, Rules(NOW, quotas={"*": Quota(gpus=1), "q": Quota(gpus=2)}))
    assert {each.entry.job_id for each in plan.decisions} == {job_id(2), job_id(3)}


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.sampled_from(("a", "b")), st.integers(0, 3))))
def test_what_projects_hold_is_the_sum_of_their_runs(changes: list[tuple[int, bool, str, int]]) -> None:
    """After any sequence of starts and ends, a project holds what its live runs hold, and one without runs nothing."""
    overview, live = Overview(SILENT_AFTER), dict[str, Held]()
    node = a_node(gpus=[a_gpu(str(number)) for number in range(3)], gpu_sharing=True)
    overview.snapshot({"n1": node}, NOW)
    for number, begins, project, gpus in changes:
        run = f"job_{number}-1"
        if begins:
            share = 1024 if gpus == 1 else 0
            uuids = tuple(f"GPU-{each}" for each in range(gpus))
            live[run] = Held(run, f"job_{number}", "n1", 1000, 1 << 30, uuids, share, project)
            overview.place(live[run])
        else:
            live.pop(run, None)
            overview.free(run)
    expected: dict[str, Using] = {}
    for held in live.values():
        gpus = 63 if held.share else 1000 * len(held.gpus)  # 1 of 16 GiB
        more = Using(1000, 1 << 30, gpus)
        expected[held.project] = expected.get(held.project, Using()).plus(more)
    assert dict(overview.snapshot({"n1": node}, NOW).using) == expected


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=6),
    st.integers(0, 10**6),
)
def test_the_past_is_the_sum_of_its_uses(uses: list[tuple[float, int, int]], later: int) -> None:
    """What is kept in one number is the decayed sum of all uses, in whatever order they ended; it never exceeds one."""
    whole = Past(0.0, NOW)
    for share, begin, length in uses:
        whole = whole.with_use(share, NOW + timedelta(seconds=begin), NOW + timedelta(seconds=begin + length))
    at = max(NOW + timedelta(seconds=begin + length) for _, begin, length in uses) + timedelta(seconds=later)
    parts = [
        Past(0.0, NOW).with_use(share, NOW + timedelta(seconds=begin), NOW + timedelta(seconds=begin + length)).now(at)
        for share, begin, length in uses
    ]
    assert whole.now(at) == pytest.approx(sum(parts), abs=1e-9)
    assert max(parts) <= 1.0


def test_a_use_for_ever_comes_to_its_share() -> None:
    """A steady use of half the cluster for long is half."""
    past = Past(0.0, NOW).with_use(0.5, NOW - 100 * HALF_LIFE, NOW)
    assert past.now(NOW) == pytest.approx(0.5)
    assert past.now(NOW + HALF_LIFE) == pytest.approx(0.25)


def test_what_is_expected_is_a_median_of_the_last_runs() -> None:
    """One run out of the way changes little, old ones are forgotten, and of what is not known nothing is expected."""
    durations = Durations()
    assert durations.expected("a") == UNKNOWN_S
    for seconds in (*(10,) * 40, 11, 9, 5000):
        durations.note("a", seconds)
    assert durations.expected("a") == 10
    for _ in range(20):
        durations.note("a", 70)
    assert durations.expected("a") == 70
    for number in range(2000):
        durations.note(str(number), 1)
    assert durations.expected("a") == UNKNOWN_S


@given(SOME_JOBS, st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans())), st.sampled_from((0.0, 0.2)))
def test_whoever_comes_next_goes_before_all_that_are_left(
    jobs: list[tuple[str, Priority, int, int]], happens: list[tuple[int, bool, bool]], had: float
) -> None:
    """Also when projects are given something meanwhile, lanes end, and whole groups of them are closed."""
    requests = [
        of(project, number, digest=f"sha256:{cpu}", cpu=cpu, priority=priority, age_s=3600 * hours)
        for number, (project, priority, cpu, hours) in enumerate(jobs)
    ]
    durations = Durations()
    durations.note("sha256:1", 60.0)
    rules = Rules(NOW, {"a": had}, durations)
    groups = [list(lanes.values()) for lanes in a_queue(*requests).shapes.values()]
    left = {lane[0].lane: list(lane) for group in groups for lane in group}
    line = Line(groups, rules, {}, Using(cpu=10))
    expected = [*happens, *[(0, True, False)] * len(jobs)]
    for entry, (more, goes_on, closes) in zip(line, expected, strict=False):
        assert entry is min((lane[0] for lane in left.values()), key=line.rank)
        line.give(entry.lane.project, Using(cpu=more))
        del left[entry.lane][0]
        if goes_on:
            line.go_on()
        if closes:
            line.close()
        left = {
            lane: rest
            for lane, rest in left.items()
            if rest and (goes_on or lane != entry.lane) and not (closes and lane.shape == entry.shape)
        }
    assert not left


def test_a_lane_is_of_one_kind() -> None:
    """Jobs of other projects, priorities, MAPs or shapes go in lanes of their own."""
    queue = a_queue(of("a", 1), of("b", 2), of("a", 3, digest="x"), of("a", 4, priority=Priority.LOWER), of("a", 5))
    assert sorted(map(len, queue.lanes.values())) == [1, 1, 1, 2]
    assert all(isinstance(lane, Lane) and isinstance(lane.shape, Shape) for lane in queue.lanes)
