"""What a run uses of its GPUs, out of what is seen of them. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from services.agent.gpu_readings import Device


@dataclass(frozen=True, slots=True)
class Held:
    """A GPU that a run has."""

    device: Device
    #: Bytes in use there when no run had it.
    others: int
    #: No other run has it now.
    alone: bool


@dataclass(frozen=True, slots=True)
class Used:
    """On all GPUs of a run; None: not told."""

    #: Bytes.
    memory: int | None = None
    #: Share of the time in which they computed, their mean, 0 to 1.
    busy: float | None = None


NOTHING = Used()


def used(held: Iterable[Held], pids: Collection[int]) -> Used:
    """Return what a run uses at this moment; `pids`: its processes, as far as they are known.

    Where none of them is on a GPU that it has alone, they may have other ids here than the driver knows (an agent in a
    container): then all that is used there, and was not before, is the run's.
    """
    gpus = list(held)
    memory = [_memory(each, pids) for each in gpus]
    busy = [share for each in gpus if (share := _busy(each, pids)) is not None]
    return Used(
        memory=None if None in memory else sum(each or 0 for each in memory),
        busy=sum(busy) / len(busy) if busy else None,
    )


def _memory(held: Held, pids: Collection[int]) -> int | None:
    mine = [size for pid, size in held.device.processes.items() if pid in pids]
    if mine and None not in mine:
        return sum(size or 0 for size in mine)
    return max(0, held.device.gpu.used - held.others) if held.alone else None


def _busy(held: Held, pids: Collection[int]) -> float | None:
    if held.alone:
        return held.device.busy
    if held.device.busy_by is None or not pids:
        return None
    return min(1.0, sum(share for pid, share in held.device.busy_by.items() if pid in pids))


class Tally:
    """What one run has used so far."""

    def __init__(self) -> None:
        self._peak: int | None = None
        self._busy = 0.0
        self._looks = 0

    def add(self, seen: Used) -> None:
        if seen.memory is not None:
            self._peak = max(self._peak or 0, seen.memory)
        if seen.busy is not None:
            self._busy += seen.busy
            self._looks += 1

    def total(self) -> Used:
        """Return the highest memory, and the mean of the looks."""
        return Used(self._peak, round(self._busy / self._looks, 4) if self._looks else None)
