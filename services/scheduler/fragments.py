"""How much of a node's free GPUs typical tasks could use: what a placement takes from that is its price. Pure.

Fragmentation is what is free and of no use to what is mostly asked. A placement goes where fragmentation grows least: a
descent along its gradient (FGD: Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with
Fragmentation Gradient Descent", USENIX ATC'23). There a free GPU is of use to a task as soon as one such task finds
room. Here that counts for the larger part, and for the rest how much of it the node could give to as many such tasks as
find room together: so GPUs whose node has little cpu or memory left count as partly stranded before they are.

All amounts are in GPUs, a part of one as its share of that GPU's memory.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from services.scheduler.demand import Typical
from services.scheduler.shape import NEVER, Device, Shape, takes

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

#: The part of the measure that asks how many tasks find room together.
TOGETHER = 0.25
#: Rows that are weighed at a time: what they need stays in the processor's cache.
CHUNK = 512


class Use(NamedTuple):
    """What the GPUs of nodes are to each kind of GPU request: an array of nodes by kinds in each field."""

    #: Times that one GPU's part of the request finds room.
    times: Floats
    #: GPUs free where it does.
    free: Floats
    #: GPUs that would be taken by all of them.
    full: Floats

    def at(self, rows: npt.NDArray[np.intp] | slice) -> "Use":
        return Use(*(each[rows] for each in self))


class Fragments:
    """The typical tasks as arrays. Kinds of GPUs and of nodes are added as they turn up."""

    def __init__(self, typical: Sequence[Typical], together: float = TOGETHER) -> None:
        self._together = together
        tasks = [each for each in typical if each.shape.gpus]
        self.shapes = [each.shape for each in tasks]
        groups: dict[tuple[object, ...], Shape] = {}
        for shape in self.shapes:
            groups.setdefault(_gpus(shape), shape)
        order = {key: place for place, key in enumerate(groups)}
        #: A shape for each kind of GPU request.
        self.groups = list(groups.values())
        self._count = np.array([shape.gpus for shape in self.groups], dtype=np.float64)
        self._group = np.array([order[_gpus(shape)] for shape in self.shapes], dtype=np.intp)
        self._share = np.array([each.share for each in tasks], dtype=np.float64)
        self._cpu = np.array([max(1, shape.cpu) for shape in self.shapes], dtype=np.float64)
        self._memory = np.array([max(1, shape.memory) for shape in self.shapes], dtype=np.float64)
        #: MiB that each kind of request takes of each kind of GPU; the last row is of no GPU at all.
        self._takes = np.full((1, len(self.groups)), NEVER, dtype=np.int64)
        self._mib = np.ones(1)
        #: For each kind of node, which tasks it runs.
        self._runs = np.zeros((0, len(self.shapes)))

    def learn_device(self, device: Device) -> None:
        """Take in a kind of GPU; they count up from 0."""
        row = [[takes(device, shape) for shape in self.groups]]
        self._takes = np.vstack([self._takes[:-1], np.array(row, dtype=np.int64), self._takes[-1:]])
        self._mib = np.array([*self._mib[:-1], device.mib, 1.0])

    def learn_home(self, runs: Sequence[bool]) -> None:
        """Take in a kind of node, by the tasks that it runs; they count up from 0."""
        self._runs = np.vstack([self._runs, np.array([runs], dtype=np.float64).reshape(1, len(self.shapes))])

    def mib(self, kinds: Ints) -> Floats:
        """Return the memory of kinds of GPUs in MiB."""
        return self._mib[kinds]

    def of_no_use(self, rows: int) -> Use:
        """Return the use of nodes without GPUs."""
        return Use(*(np.zeros((rows, len(self.groups))) for _ in Use._fields))

    def use(self, kinds: Ints, free: Ints) -> Use:
        """Return what GPUs are of use for: their kinds, and what is free of them in MiB, in arrays of the same form."""
        takes_each = self._takes[kinds]
        size = self._mib[kinds][..., None]
        times = free[..., None] // takes_each
        return Use(times.astype(np.float64), (times > 0) * (free[..., None] / size), times * (takes_each / size))

    def usable(self, cpu: Ints, memory: Ints, homes: Ints, use: Use) -> Floats:
        """Return for each node how much of its GPUs typical tasks could use, of its free cpu, memory and GPUs."""
        found = np.empty(len(cpu))
        for start in range(0, len(cpu), CHUNK):
            part = slice(start, start + CHUNK)
            found[part] = self._usable(cpu[part], memory[part], homes[part], use.at(part))
        return found

    def _usable(self, cpu: Ints, memory: Ints, homes: Ints, use: Use) -> Floats:
        tasks = use.times // self._count
        fits = tasks >= 1
        one = np.where(fits, use.free, 0.0)
        # of the GPUs that could be given, those that make up whole tasks
        full = np.where(fits, use.full * (tasks * self._count) / np.maximum(use.times, 1), 0.0)
        each = full / np.maximum(tasks, 1)
        room = np.minimum(cpu[:, None] / self._cpu, memory[:, None] / self._memory)
        together = np.minimum(room * each[:, self._group], full[:, self._group])
        weighed = (1 - self._together) * one[:, self._group] + self._together * together
        # not by BLAS, whose sums differ with the place of a row among others: equal nodes are to have equal prices
        found: Floats = np.einsum("nt,nt,nt->n", room >= 1, self._runs[homes], weighed * self._share)
        return found


def _gpus(shape: Shape) -> tuple[object, ...]:
    """Return the part of a shape that its GPUs decide."""
    return (
        shape.gpus,
        shape.gpu_share,
        shape.may_share,
        shape.gpu_memory,
        shape.gpu_models,
        shape.compute_capability,
    )
