"""How full a cluster gets: the protocol of the FGD paper, and what is left of it when tasks come and go."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gurney.model.run import Node
from services.scheduler.demand import Typical, task_of, typical_of
from services.simulate.trace import Task
from services.simulate.world import World, entry_of

#: Steps of the curve: allocation at each per cent of the cluster's GPUs that have arrived.
STEP = 0.01


@dataclass(frozen=True, slots=True)
class Filled:
    """One run."""

    #: Per cent of GPU units given when all have arrived.
    allocation: float
    #: Per cent of the GPUs left over that typical tasks cannot use, as the paper counts.
    fragmentation: float
    #: The same two after as many tasks have left and others come as there were.
    later_allocation: float | None
    later_fragmentation: float | None
    decision_ms: list[float]
    #: Per cent arrived, per cent given.
    curve: list[tuple[float, float]]


def typical(tasks: Sequence[Task]) -> tuple[Typical, ...]:
    """Return what is typical of a list of tasks."""
    return typical_of(Counter(task_of(task.shape) for task in tasks))


def inflated(tasks: Sequence[Task], units: int, ratio: float, chance: random.Random) -> list[Task]:
    """Return the tasks in random order, so many that they ask `ratio` times the units that there are.

    Further ones are drawn from them, and come last; superfluous ones are left out at random.
    """
    found = list(tasks)
    chance.shuffle(found)
    asked, target = sum(task.units for task in found), ratio * units
    while asked > target:
        asked -= found.pop(chance.randrange(len(found))).units
    if not any(task.units for task in tasks):
        return found
    while True:
        task = chance.choice(tasks)
        if asked + task.units > target:
            return found
        found.append(task)
        asked += task.units


def fill(
    nodes: Sequence[Node],
    tasks: Sequence[Task],
    against: tuple[Typical, ...],
    *,
    seed: int,
    ratio: float,
    random_ties: bool = False,
    churn: bool = False,
    best_fit: bool = False,
) -> Filled:
    """Let the tasks arrive one by one; what does not fit at once is dropped, and nobody leaves."""
    chance = random.Random(seed)  # noqa: S311
    ties = random.Random(-seed - 1) if random_ties else None  # noqa: S311
    world = World(nodes, () if best_fit else against, ties)
    arrivals = inflated(tasks, world.units, ratio, chance)
    curve: list[tuple[float, float]] = []
    arrived = 0
    for number, task in enumerate(arrivals):
        world.offer(entry_of(number, task, 0))
        arrived += task.units
        share = arrived / max(1, world.units)
        if share >= STEP * (len(curve) + 1):
            curve.append((100 * share, world.allocation))
    allocation, fragmentation = world.allocation, world.fragmentation(against)
    if not churn:
        return Filled(allocation, fragmentation, None, None, world.decision_ms, curve)
    _churn(world, tasks, len(arrivals), chance, ratio)
    return Filled(allocation, fragmentation, world.allocation, world.fragmentation(against), world.decision_ms, curve)


def _churn(world: World, tasks: Sequence[Task], count: int, chance: random.Random, ratio: float) -> None:
    """Let as many tasks leave as there are, one by one, and `ratio` times as many units come."""
    running = world.running
    owed = 0.0
    number = count
    for _ in range(count):
        before = world.used
        place = chance.randrange(len(running))
        running[place], running[-1] = running[-1], running[place]
        world.end(running.pop())
        owed += ratio * (before - world.used)
        while owed > 0 or not running:
            task = chance.choice(tasks)
            owed -= max(1, task.units)
            number += 1
            plan = world.offer(entry_of(number, task, 0))
            running += [decision.run_id for decision in plan.decisions]
