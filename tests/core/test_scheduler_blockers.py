"""What a job that waits is told to be in its way: without that it starts."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count, islice

import pytest
from hypothesis import settings

from gurney.model.job import PlacementRequest, Priority
from gurney.model.resources import Quota
from gurney.model.run import Node, NodeState, Placement
from services.scheduler import machine
from services.scheduler.blocker import Blocker, blocker
from services.scheduler.order import Entry, Queue, entry_of
from services.scheduler.plan import Plan
from services.scheduler.policy import evaluate
from services.scheduler.predict import Durations
from services.scheduler.snapshot import Booking, Snapshot
from services.scheduler.turns import Rules
from tests.core.scheduler_builders import (
    DIR,
    GIB,
    NOW,
    OCI,
    a_gpu,
    a_node,
    a_placement,
    a_queue,
    a_request,
    a_snapshot,
)

PROJECTS = ("a", "b", "c")
#: The share of cases in which the job starts once what was named is gone.
LEAST = 0.95
#: Room that is kept for another one may be lent to it, which nobody can tell before the rest is gone.
NEEDLESS = 0.1


@dataclass
class World:
    """Nodes, what runs there, and what waits."""

    nodes: list[Node]
    placements: list[Placement]
    queue: Queue
    rules: Rules
    bookings: Mapping[str, Booking] = field(default_factory=dict)

    @property
    def snapshot(self) -> Snapshot:
        return replace(a_snapshot(self.nodes, self.placements), bookings=self.bookings)

    def plan(self) -> Plan:
        return evaluate(self.snapshot, self.queue.shapes, self.rules)

    def settle(self) -> None:
        """Carry the plan out, as the scheduler does whenever something changes."""
        while (plan := self.plan()).decisions or plan.bookings.keys() != self.bookings.keys():
            for decision in plan.decisions:
                self.placements.append(machine.placed(decision, epoch=1))
                self.queue.drop(decision.entry.job_id)
            self.bookings = plan.bookings

    def blocker(self, entry: Entry) -> Blocker | None:
        return blocker(entry, self.queue.lanes, self.snapshot, self.rules)

    def remove(self, found: Blocker) -> None:
        """Remove what was named, and nothing else."""
        gone = {"state": NodeState.READY, "last_seen_at": NOW} if found.standing else {}
        self.nodes = [node.but(**gone) if node.id == found.node else node for node in self.nodes]
        self.placements = [each for each in self.placements if each.id not in found.runs]
        for job in found.jobs:
            self.queue.drop(job)
        self.bookings = {name: each for name, each in self.bookings.items() if each.job_id not in found.jobs}


def some_nodes(chance: random.Random) -> list[Node]:
    """Return up to eight nodes, most of them ready."""
    nodes = []
    for number in range(chance.randint(1, 8)):
        count, model = chance.choice((0, 1, 2, 4, 8)), chance.choice("AAB")
        memory, others = chance.choice((16, 24, 80)) * GIB, chance.choice((0, 0, 0, 3 * GIB))
        gpus = [
            a_gpu(
                f"{number}-{each}",
                model=model,
                memory=memory,
                others=others,
                health=chance.choice(["ok"] * 9 + ["lost"]),
            )
            for each in range(count)
        ]
        node = a_node(
            f"n{number}",
            gpus=gpus,
            gpu_sharing=chance.random() < 0.4,
            cpu=chance.choice((4, 8, 16, 64)),
            memory=chance.choice((8, 32, 128)) * GIB,
            kinds=chance.choice(((DIR,), (DIR, OCI))),
            labels=chance.choice(({}, {"site": "a"})),
            state=chance.choices((NodeState.READY, NodeState.DRAINING, NodeState.LOST), (8, 1, 1))[0],
            last_seen_at=NOW - timedelta(seconds=chance.choice((0,) * 9 + (60,))),
        )
        nodes.append(node)
    return nodes


def some_requests(chance: random.Random, first: int, count: int) -> list[PlacementRequest]:
    """Return jobs of all sorts, projects and ages."""
    made = []
    for number in range(first, first + count):
        kind = chance.choices(("cpu", "gpus", "share"), (3, 4, 2))[0]
        request = a_request(
            number,
            age_s=chance.choice((10, 1000, 20_000, 100_000)) * chance.random(),
            cpu=chance.choice((0.1, 1, 2, 4, 8)),
            memory=chance.choice((0, 1, 4, 16)) * GIB,
            gpus=chance.choice((1, 1, 1, 2, 4, 8)) if kind == "gpus" else None,
            gpu_share=chance.choice((2, 5, 8, 16)) * GIB if kind == "share" else None,
            gpu_model=chance.choice((None, None, None, "A", "A|B")) if kind != "cpu" else None,
            urn=chance.choice((f"{DIR}a", f"{DIR}a", f"{OCI}c")),
            node_labels=chance.choice((None, None, None, {"site": "a"})),
            priority=chance.choices(list(Priority), (1, 6, 2, 1))[0],
            avoid=chance.choice(((), (), ("n0",))),
        )
        run = request.request.but(digest=chance.choice(("short", "long", "unknown")))
        made.append(request.but(project=chance.choice(PROJECTS), request=run))
    return made


def some_world(seed: int) -> World:
    """Return a cluster that has filled up, and a queue behind it."""
    chance = random.Random(seed)
    durations = Durations()
    durations.note("short", 20)
    durations.note("long", 5000)
    had = {project: chance.random() / 2 for project in PROJECTS}
    quotas = {"a": Quota(gpus=chance.choice((2, 6))), "b": Quota(cpu=20)} if chance.random() < 0.3 else {}
    first, later = chance.randint(0, 60), chance.randint(1, 60)
    world = World(some_nodes(chance), [], a_queue(*some_requests(chance, 0, first)), Rules(NOW, had, durations, quotas))
    world.settle()
    for placement in chance.sample(world.placements, len(world.placements) // 4):
        world.placements.remove(placement)
    for request in some_requests(chance, 1000, later):
        world.queue.add(entry_of(request, NOW))
    world.settle()
    for placement in world.placements[: chance.choice((0, 0, 0, 0, 1))]:  # its earlier attempt lives on
        again = a_request(1, attempt=2).but(job_id=placement.job_id, project=placement.project)
        world.queue.add(entry_of(again, NOW))
    return world


@dataclass
class Case:
    """A job that waits in some world, and what is in its way."""

    seed: int
    job: str
    reason: str
    found: Blocker

    def starts_without(self, found: Blocker) -> bool:
        """Tell whether the job starts when this, and nothing else, is removed."""
        world = some_world(self.seed)
        world.remove(found)
        return self.job in {each.entry.job_id for each in world.plan().decisions}

    @property
    def lesser(self) -> Iterator[Blocker]:
        """Each part but one of what is in its way."""
        for run in self.found.runs:
            yield replace(self.found, runs=tuple(each for each in self.found.runs if each != run))
        for job in self.found.jobs[:3]:
            yield replace(self.found, jobs=tuple(each for each in self.found.jobs if each != job))
        if self.found.standing:
            yield replace(self.found, standing=())


def some_cases() -> Iterator[Case]:
    """Yield jobs that wait for something which may be, one of each world that has such."""
    for seed in count():
        world = some_world(seed)
        waiting = [each for lane in world.queue.lanes.values() for each in lane]
        random.Random(seed).shuffle(waiting)
        for entry in waiting:
            reason = world.plan().reasons(entry)[0].code
            if found := world.blocker(entry):
                yield Case(seed, entry.job_id, reason, found)
                break


@pytest.mark.timeout(1800)
def test_without_what_is_named_the_job_starts() -> None:
    """In 95 % of random cases a job that waits starts once what it was told to be in its way is gone."""
    cases = list(islice(some_cases(), settings().max_examples))
    assert not [case for case in cases if not case.found.standing + case.found.runs + case.found.jobs]
    stuck = [case for case in cases if not case.starts_without(case.found)]
    share, reasons = 1 - len(stuck) / len(cases), Counter(case.reason for case in cases)
    print(f"{share:.3f} of {len(cases)} start; first reasons: {dict(reasons)}; stuck: {stuck}")
    assert share >= LEAST
    assert {"gpus_busy", "cpu_busy", "gpu_share_busy", "draining"} <= set(reasons)


@pytest.mark.timeout(1800)
def test_no_more_is_named_than_is_in_the_way() -> None:
    """In nine of ten random cases a job waits on while any one thing of what was named is left."""
    lesser = [(case, part) for case in islice(some_cases(), settings().max_examples // 4) for part in case.lesser]
    needless = [(case, part) for case, part in lesser if case.starts_without(part)]
    print(f"{len(needless)} of {len(lesser)} things that were named are not in the way")
    assert len(needless) <= NEEDLESS * len(lesser)


def test_a_job_that_no_node_could_hold_has_nothing_in_its_way() -> None:
    """There is nothing to be removed: its reasons say what no node has."""
    world = World([a_node(cpu=4)], [], a_queue(a_request(1, cpu=64)), Rules(NOW))
    (entry,) = (each for lane in world.queue.lanes.values() for each in lane)
    assert world.blocker(entry) is None


def test_a_job_that_asks_more_than_its_quota_has_nothing_in_its_way() -> None:
    """No run that ended would help it."""
    rules = Rules(NOW, quotas={"default": Quota(cpu=2)})
    world = World([a_node(cpu=4)], [a_placement(9, cpu=1)], a_queue(a_request(1, cpu=3)), rules)
    (entry,) = (each for lane in world.queue.lanes.values() for each in lane)
    assert world.blocker(entry) is None


def test_few_runs_are_named_rather_than_many() -> None:
    """Where one run or several would make room it is the one, and rather a small one than a large one."""
    node = a_node(cpu=8, memory=64 * GIB)
    small = [a_placement(number, cpu=1) for number in range(4)]
    world = World([node], [a_placement(9, cpu=4), *small], a_queue(a_request(20, cpu=4)), Rules(NOW))
    (entry,) = (each for lane in world.queue.lanes.values() for each in lane)
    found = world.blocker(entry)
    assert found == Blocker("n1", (), (a_placement(9).id,), ())
    world.queue = a_queue(a_request(21, cpu=1))
    (entry,) = (each for lane in world.queue.lanes.values() for each in lane)
    found = world.blocker(entry)
    assert found
    assert len(found.runs) == 1
    assert found.runs[0] != a_placement(9).id
    told = found.told(names=False)
    assert (told.runs, told.run_ids) == (1, ())
    assert told.message == "nearest to having room is n1: 1 live runs would have to end"
