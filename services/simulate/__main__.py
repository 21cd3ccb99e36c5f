"""`gurney simulate`: how well the scheduler's core places, on a trace or on a made-up one."""

import gc
import json
import sys
from collections.abc import Sequence
from typing import Any

from gurney.cli.simulate import Simulation
from gurney.errors import Invalid
from gurney.model.run import Node
from services.simulate import generator, measure, trace
from services.simulate.fill import Filled, fill, typical
from services.simulate.plots import draw
from services.simulate.queue import Replayed, replay
from services.simulate.trace import WHOLE, Task

#: Tasks that are made up for each GPU: about what the public trace has; and so many that they come and go for long.
TASKS_PER_GPU = 1.3
REPLAYED_PER_GPU = 20


def simulate(asked: Simulation) -> int:
    """Run what was asked and print it; returns the exit code. Raises `Invalid` for what cannot be read."""
    if asked.seeds < 1 or asked.size < 1 or asked.inflate <= 0 or asked.load <= 0:
        raise Invalid("seeds and size are at least 1, inflate and load more than 0")
    fills: list[Filled] = []
    replays: list[Replayed] = []
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        nodes, tasks = _input(asked, seed)
        gc.collect()
        gc.freeze()  # as the server does, once it has started
        if asked.queue:
            replays.append(replay(nodes, tasks, () if asked.best_fit else typical(tasks), asked.order))
            if asked.tasks:
                break  # a trace has one order
        else:
            fills.append(_fill(asked, nodes, tasks, seed))
    found = measure.of_replays(replays) if asked.queue else measure.of_fills(fills)
    if asked.plots:
        found["plots"] = [str(path) for path in draw(asked.plots, fills, replays)]
    _say(found, as_json=asked.as_json)
    return 0


def _input(asked: Simulation, seed: int) -> tuple[list[Node], list[Task]]:
    nodes = trace.read_nodes(asked.nodes) if asked.nodes else generator.nodes(asked.size, seed)
    if not nodes:
        raise Invalid(f"{asked.nodes}: there is no node")
    if asked.tasks:
        return nodes, trace.read_tasks(asked.tasks)
    gpus = sum(len(node.gpus) for node in nodes)
    count = asked.jobs or int((REPLAYED_PER_GPU if asked.queue else TASKS_PER_GPU) * gpus) + 1
    return nodes, generator.tasks(count, seed, gpus * WHOLE, asked.load, bursts=asked.queue)


def _fill(asked: Simulation, nodes: Sequence[Node], tasks: Sequence[Task], seed: int) -> Filled:
    return fill(
        nodes,
        tasks,
        typical(tasks),
        seed=seed,
        ratio=asked.inflate,
        random_ties=asked.random_ties,
        churn=asked.departures,
        best_fit=asked.best_fit,
    )


def _say(found: dict[str, Any], *, as_json: bool) -> None:
    text = json.dumps(found) if as_json else "\n".join(f"{name:28} {value}" for name, value in found.items())
    sys.stdout.write(text + "\n")
