"""`gurney simulate`: how well the scheduler places, without a server."""

from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Simulation:
    """What is simulated.

    Parameters
    ----------
    nodes
        CSV file of nodes (columns sn, cpu_milli, memory_mib, gpu, model). By default they are made up.
    tasks
        CSV file of tasks (columns cpu_milli, memory_mib, num_gpu, gpu_milli; also gpu_spec, creation_time,
        scheduled_time, deletion_time in seconds). By default they are made up.
    inflate
        The tasks are drawn again until they ask so many times the GPUs that there are.
    seeds
        Number of runs, each in another order.
    first_seed
        Seed of the first run; the others count up.
    random_ties
        Chance decides between nodes that are equally good, instead of their ids.
    departures
        Afterwards let as many tasks leave as there were while others come, and tell what the cluster is like then.
    queue
        Let the tasks come and go at their times instead, and tell how long they wait.
    order
        With --queue: `gurney`, as the server orders; or a yardstick that goes by age alone: with `skip` what does not
        fit is passed, with `fifo` nobody passes one that waits before him.
    best_fit
        Place by room alone, without a look at fragmentation. A yardstick.
    size
        Number of nodes that are made up.
    jobs
        Number of tasks that are made up. By default 1.3 for each GPU, with --queue 20.
    load
        With --queue: how many times the GPUs that there are the made-up tasks ask on average.
    plots
        Folder for curves as PNG; needs Pillow (the extra `plots`).
    as_json
        Print JSON.
    """

    nodes: Path | None = None
    tasks: Path | None = None
    inflate: float = 1.3
    seeds: int = 10
    first_seed: int = 0
    random_ties: bool = False
    departures: bool = False
    queue: bool = False
    order: Literal["gurney", "skip", "fifo"] = "gurney"
    best_fit: bool = False
    size: int = 100
    jobs: int | None = None
    load: float = 1.0
    plots: Path | None = None
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False


def simulate(*, asked: Simulation | None = None) -> int:
    """Run the scheduler's core on a trace or on made-up nodes and tasks, on a virtual clock, and print the figures.

    By default the tasks arrive once, in random order, and nobody leaves: how full does the cluster get?
    """
    (command,) = entry_points(group="gurney.servers", name="simulate")
    return int(command.load()(asked or Simulation()))
