"""How long the scheduler takes to decide, on made-up clusters that are full, with few or many jobs waiting.

Each round ends a run, adds a job and times what the service does then: the snapshot and the evaluation of all that
waits. Prints min, median, p99 and max in ms, and the ratio of the medians with many to few jobs waiting.
"""

import argparse
import gc
import random
import statistics

from services.scheduler.order import Queue
from services.scheduler.turns import Rules
from services.simulate import generator
from services.simulate.fill import typical
from services.simulate.measure import percentile
from services.simulate.trace import WHOLE
from services.simulate.world import World, entry_of, moment


def rounds(size: int, waiting: int, count: int) -> list[float]:
    """Return the ms of each round's decisions."""
    nodes = generator.nodes(size, 1)
    gpus = sum(len(node.gpus) for node in nodes)
    tasks = generator.tasks(int(1.3 * gpus), 1, gpus * WHOLE, 1.0)
    chance = random.Random(1)
    world, queue = World(nodes, typical(tasks)), Queue()
    made = 0

    def more(wanted: int) -> None:
        nonlocal made
        for _ in range(wanted):
            made += 1
            queue.add(entry_of(made, chance.choice(tasks), made))

    def decide() -> None:
        plan = world.decide(queue.shapes, Rules(moment(made)))
        world.book(plan.bookings)
        for decision in plan.decisions:
            queue.drop(decision.entry.job_id)

    more(len(tasks))
    decide()
    while len(queue) < waiting:
        more(waiting - len(queue))
        decide()
    for entry in [entry for lane in queue.lanes.values() for entry in lane][waiting:]:
        queue.drop(entry.job_id)
    gc.collect()
    gc.freeze()
    found = []
    for _ in range(count):
        world.end(chance.choice(world.running))
        more(1)
        world.decision_ms.clear()
        decide()
        found += world.decision_ms
    print(f"{size} nodes, {gpus} GPUs, {len(queue)} waiting in {len(queue.lanes)} lanes: ", end="")
    print(" / ".join(f"{each:.2f}" for each in (min(found), percentile(found, 50), percentile(found, 99), max(found))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1213, 10_000])
    parser.add_argument("--waiting", type=int, nargs=2, default=[10, 10_000])
    parser.add_argument("--rounds", type=int, default=500)
    asked = parser.parse_args()
    for size in asked.sizes:
        few, many = (statistics.median(rounds(size, waiting, asked.rounds)) for waiting in asked.waiting)
        print(f"{size} nodes: {many / few:.2f} x with {asked.waiting[1]} waiting")


if __name__ == "__main__":
    main()
