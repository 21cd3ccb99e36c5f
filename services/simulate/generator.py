"""Made-up nodes and tasks, the same for the same seed. Pure.

The kinds of tasks are as frequent as in the public trace (Alibaba GPU trace 2023, as its documentation has it); all
else is plausible and of nobody. With bursts, some tasks arrive one by one and some many alike at once.
"""

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace

from gurney.model.run import Node
from services.simulate.trace import WHOLE, Task, node, shape

#: GPUs per task -> per cent of tasks; None: a share of one.
KINDS: dict[int | None, float] = {1: 47.98, None: 37.76, 0: 13.35, 8: 0.54, 2: 0.2, 4: 0.17}
#: Cores, GiB, GPUs, model -> weight.
NODES: dict[tuple[int, int, int, str], int] = {
    (96, 384, 8, "A"): 45,
    (104, 512, 2, "B"): 32,
    (32, 128, 4, "C"): 10,
    (128, 768, 8, "D"): 8,
    (16, 120, 2, "E"): 5,
}
#: Cores and GiB that go with one GPU, and with a share of one.
WITH_ONE = ((4, 15), (8, 30), (12, 48), (16, 64))
WITH_SHARE = ((2, 8), (4, 16), (6, 12), (8, 30))
SHARES = (100, 200, 250, 300, 460, 500, 590, 700, 810)
WITHOUT = ((4, 8), (8, 30), (16, 64), (32, 64))
GIB = 1024

#: Of the tasks, those that come many at once, how many alike at a time on average, and the mean run in seconds.
BURSTY = 0.5
BURST = 40
RUN_S = 1800.0
PROJECTS = 12
#: MAPs: how far their typical runs lie apart, and the runs of one of them, as standard deviations of the logarithm.
MAPS = 40
APART, ALIKE = 1.45, 0.384


def nodes(size: int, seed: int) -> list[Node]:
    """Return this many nodes."""
    chance = random.Random(seed)  # noqa: S311
    found = chance.choices(list(NODES), weights=list(NODES.values()), k=size)
    return [
        node(f"node-{number:05d}", cores * 1000, gib * GIB, gpus, model)
        for number, (cores, gib, gpus, model) in enumerate(found)
    ]


def tasks(count: int, seed: int, units: int, load: float, *, bursts: bool = True) -> list[Task]:
    """Return this many tasks; with their times they ask on average for `load` times the `units` that there are."""
    chance = random.Random(seed)  # noqa: S311
    maps = {f"map-{number}": chance.lognormvariate(0.0, APART) for number in range(MAPS)}
    found = list(_tasks(chance, count, maps))
    first = list(range(count))
    for burst in _bursts(chance, count) if bursts else ():
        for each in burst:
            found[each] = replace(found[burst[0]], runs=_run(chance, maps[found[burst[0]].map]))
            first[each] = burst[0]
    span = sum(task.units * task.runs for task in found) / max(1, units) / load
    starts = [round(chance.uniform(0, span), 3) for _ in found]
    timed = [replace(task, at=starts[place]) for task, place in zip(found, first, strict=True)]
    return sorted(timed, key=lambda task: task.at)


def _run(chance: random.Random, typical: float) -> float:
    """Return the seconds of a run; over all MAPs the mean is about `RUN_S`."""
    runs = typical * chance.lognormvariate(0.0, ALIKE) * RUN_S / math.exp((APART**2 + ALIKE**2) / 2)
    return round(min(max(10.0, runs), 50 * RUN_S), 3)


def _tasks(chance: random.Random, count: int, maps: Mapping[str, float]) -> Iterator[Task]:
    for gpus in chance.choices(list(KINDS), weights=list(KINDS.values()), k=count):
        project = f"p{min(int(chance.expovariate(0.4)), PROJECTS - 1)}"
        if gpus is None:
            cores, gib = chance.choice(WITH_SHARE)
            asked = shape(cores * 1000, gib * GIB, 1, chance.choice(SHARES))
        elif gpus:
            cores, gib = chance.choices(WITH_ONE, weights=(3, 4, 2, 1))[0]
            asked = shape(min(cores, 12) * gpus * 1000, min(gib, 48) * gpus * GIB, gpus, WHOLE)
        else:
            cores, gib = chance.choice(WITHOUT)
            asked = shape(cores * 1000, gib * GIB)
        name = chance.choice(list(maps))
        yield Task(asked, runs=_run(chance, maps[name]), project=project, map=name)


def _bursts(chance: random.Random, count: int) -> Iterator[list[int]]:
    """Return which tasks come together, alike."""
    left = chance.sample(range(count), int(BURSTY * count))
    while left:
        size = min(len(left), 1 + int(chance.expovariate(1 / BURST)))
        yield left[:size]
        left = left[size:]
