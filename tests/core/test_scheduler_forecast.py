"""When a job that waits will start: what holds of every estimate, and how far it lies from what happens."""

from collections.abc import Sequence
from datetime import timedelta
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gurney.model.job import Priority
from gurney.model.resources import Quota
from gurney.model.run import Node, Placement
from services.scheduler import forecast
from services.scheduler.forecast import outlook
from services.scheduler.order import Entry, Queue, entry_of, lanes_of
from services.scheduler.predict import UNKNOWN_S, Durations
from services.scheduler.snapshot import Held, Snapshot, held_by
from services.scheduler.turns import Rules
from services.simulate import generator, trace
from services.simulate.queue import estimates
from services.simulate.trace import Task, shape
from tests.core.scheduler_builders import GIB, NOW, RULES, a_gpu, a_node, a_placement, a_request, a_snapshot


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


def waits_for(snapshot: Snapshot, *entries: Entry, rules: Rules = RULES) -> float | None:
    """Return the estimate for the first of these, which all wait."""
    queue = Queue()
    for entry in entries:
        queue.add(entry)
    return outlook(entries[0], queue.lanes, snapshot, rules)[1]


def a_job(number: int, *, project: str = "default", digest: str = "sha256:0", **more: Any) -> Entry:
    """Return a job that waits, and asks 4 cores if it does not say."""
    request = a_request(number, **{"cpu": 4} | more)
    run = request.request.but(digest=digest)
    return entry_of(request.but(project=project, request=run), NOW)


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


def test_a_project_that_was_given_something_comes_later() -> None:
    """Who goes before a job now goes behind it once its project holds something: as it will be when it starts."""
    snapshot = full([a_node("n1"), a_node("n2")], ("n1", 10), ("n2", 20))
    others = [a_job(number, project="q", age_s=99) for number in (2, 3)]
    assert waits_for(snapshot, a_job(1, project="p"), *others) == 20
    assert waits_for(snapshot, a_job(1, project="q"), *others) == 10 + UNKNOWN_S


def test_a_long_run_lets_short_ones_pass_that_are_behind_it_now() -> None:
    """A short run whose wait will make it go first by then is counted, though it goes after now."""
    durations = Durations()
    durations.note("short", 100)
    durations.note("long", 1000)
    rules = Rules(NOW, durations=durations)
    long, short = a_job(1, digest="long", age_s=2500), a_job(2, digest="short")
    assert waits_for(full([a_node()], ("n1", 5)), long, short, rules=rules) == 5
    assert waits_for(full([a_node()], ("n1", 90)), long, short, rules=rules) == 90 + 100


def test_priority_goes_before_all_else() -> None:
    """An urgent job that came later goes first, and of several urgent ones the older, however long it will run."""
    durations = Durations()
    durations.note("short", 100)
    snapshot, rules = full([a_node()], ("n1", 10)), Rules(NOW, durations=durations)
    long = a_job(2, priority=Priority.IMMEDIATE, age_s=7)
    short = a_job(3, priority=Priority.IMMEDIATE, age_s=6, digest="short")
    assert waits_for(snapshot, short, long, a_job(1, age_s=99), rules=rules) == 10 + UNKNOWN_S
    assert waits_for(snapshot, a_job(1, age_s=99), short, long, rules=rules) == 10 + UNKNOWN_S + 100


def test_room_that_a_job_could_not_use_is_given_to_others() -> None:
    """Neither what nodes lack for ever, nor a quota, lets a job have the room; who waits behind it may have it."""
    nodes = [a_node("n1"), a_node("n2", labels={"zone": "b"})]
    snapshot = full(nodes, ("n1", 10), ("n2", 20))
    there = a_job(1, node_labels={"zone": "b"}, age_s=9)
    assert waits_for(snapshot, there, a_job(2)) == 20
    assert waits_for(snapshot, a_job(2), there) == 10
    rules = Rules(NOW, had={"q": 1.0}, quotas={"default": Quota(cpu=4)})
    assert waits_for(snapshot, a_job(1, age_s=9), a_job(2, project="q"), rules=rules) == 20
    assert waits_for(snapshot, a_job(2, project="q"), a_job(1, age_s=9), rules=rules) == 10


def test_of_a_gpu_that_is_shared_each_has_its_part() -> None:
    """Jobs that ask shares of a GPU start together where it has room for all, and one after the other where not."""
    nodes = [a_node(gpus=[a_gpu("0")], gpu_sharing=True)]
    snapshot = full(nodes, ("n1", 10))
    half, small, large = (a_job(n, cpu=1, gpu_share=gib * GIB, age_s=9 - n) for n, gib in ((1, 8), (2, 8), (3, 9)))
    assert waits_for(snapshot, small, half) == 10
    assert waits_for(snapshot, large, half, small) == 10 + UNKNOWN_S


def test_who_does_not_wait_yet_stands_behind_those_who_do() -> None:
    """A dry run is told what a job would be that comes now."""
    queue, snapshot = Queue(), full([a_node()], ("n1", 10))
    queue.add(a_job(1, age_s=9))
    job = a_job(2)
    assert outlook(job, lanes_of(queue.with_one_more(job)), snapshot, RULES) == (2, 10 + UNKNOWN_S)
    assert len(queue) == 1


def test_a_long_line_goes_on_as_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of a line too long to be rehearsed takes its time in proportion, and until a node can have room."""
    monkeypatch.setattr(forecast, "REHEARSED", 10)
    snapshot = full([a_node()], ("n1", UNKNOWN_S))
    line = [a_job(number, age_s=100 - number) for number in range(1, 41)]
    assert waits_for(snapshot, *reversed(line)) == 40 * UNKNOWN_S
    assert waits_for(snapshot, a_job(41, cpu=8), *line) is None
    monkeypatch.setattr(forecast, "REHEARSED", 1)
    snapshot = full([a_node(cpu=8, gpus=[a_gpu("0"), a_gpu("1")])], ("n1", 10), ("n1", 500))
    assert waits_for(snapshot, a_job(1, gpus=2), a_job(2, gpus=1, age_s=9)) == 500


@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([0, 1])), max_size=15),
    st.sampled_from([1, 2]),
)
def test_it_is_as_told_where_things_go_as_expected(asked: list[tuple[int, int]], gpus: int) -> None:
    """Where all come at once and run as long as is expected, each starts exactly when it was told."""
    node = trace.node("n1", cpu_milli=4000, memory_mib=1024, gpus=gpus, model="A")
    tasks = [Task(shape(cpu * 1000, 1, gpu), at=0.0, runs=UNKNOWN_S) for cpu, gpu in asked]
    assert all(told == was for told, was in estimates([node], tasks, every=1))


def test_who_may_hold_no_more_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a project's quota has refused is not tried again on each node that becomes free, lane by lane."""
    asked: list[str] = []
    begin = forecast._Rehearsal._begin

    def counting(self: Any, entry: Entry, view: Any) -> Any:
        asked.append(entry.lane.project)
        return begin(self, entry, view)

    monkeypatch.setattr(forecast._Rehearsal, "_begin", counting)
    nodes = [a_node(f"n{number}") for number in range(20)]
    snapshot = full(nodes, *((node.id, 10.0 + number) for number, node in enumerate(nodes)))
    rules = Rules(NOW, quotas={"much": Quota(cpu=4)})
    refused = [a_job(number, project="much", digest=f"sha256:{number}", age_s=9) for number in range(2, 60)]
    others = [a_job(number, project="other", age_s=5) for number in range(60, 75)]
    assert waits_for(snapshot, a_job(1, project="other"), *refused, *others, rules=rules) == 10 + 16
    assert asked.count("much") == 2


def test_ends_at_one_time_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many runs that are to end at one moment some are rehearsed; that the others end then is known."""
    monkeypatch.setattr(forecast, "REHEARSED", 5)
    ended: list[Held] = []
    end = forecast._Rehearsal._end

    def counting(self: Any, held: Held) -> str:
        ended.append(held)
        return end(self, held)

    monkeypatch.setattr(forecast._Rehearsal, "_end", counting)
    nodes = [a_node(f"n{number}") for number in range(20)]
    snapshot = full(nodes, *((node.id, 10.0) for node in nodes))
    jobs = [a_job(number, age_s=9) for number in range(2, 30)]
    assert waits_for(snapshot, a_job(1), *jobs) == pytest.approx(10 * 29 / 20)
    assert len(ended) == 5


def test_most_estimates_are_of_use() -> None:
    """In replays of busy times with bursts, estimates are off by less than a factor of 2 in the median."""
    found: list[tuple[float, float]] = []
    for seed in (0, 1, 10):
        nodes = generator.nodes(8, seed)
        gpus = sum(len(node.gpus) for node in nodes)
        found += estimates(nodes, generator.tasks(30 * gpus, seed, gpus * 1000, 1.0), every=5)
    assert len(found) > 500
    assert median(max(told / was, was / told) for told, was in found) < 2
