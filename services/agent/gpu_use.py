"""What a run uses of its GPUs, out of what is seen of them. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from gurney.settings import MIB
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

#: The part of its share that a run may take beyond it: what the driver needs for a process is not the application's.
TOLERANCE = 0.1
#: Seconds for which it may take more than that.
EXCESS_S = 2.0
#: Bytes in use on a GPU that the driver's own needs explain.
UNTOLD = 512 * MIB

#: Bytes that no process holds less of which computes: what the driver needs for it alone is more.
LEAST = 64 * MIB


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


def is_nothing(seen: Used) -> bool:
    """Tell whether no process of the run computes on its GPUs, as far as that is known."""
    return seen.memory is not None and seen.memory < LEAST


def own(device: Device, pids: Collection[int]) -> int | None:
    """Return the bytes that a run's own processes hold on a GPU; None: that cannot be told."""
    mine = [size for pid, size in device.processes.items() if pid in pids]
    return sum(size or 0 for size in mine) if mine and None not in mine else None


def _memory(held: Held, pids: Collection[int]) -> int | None:
    if (mine := own(held.device, pids)) is not None:
        return mine
    return max(0, held.device.gpu.used - held.others) if held.alone else None


def _busy(held: Held, pids: Collection[int]) -> float | None:
    if held.alone:
        return held.device.busy
    if held.device.busy_by is None or not pids:
        return None
    return min(1.0, sum(share for pid, share in held.device.busy_by.items() if pid in pids))


class Watch:
    """Finds out whether a run takes more than its share of a GPU, in bytes. Only what is known to be its own counts."""

    def __init__(self, share: int) -> None:
        self._most = share * (1 + TOLERANCE)
        self._since: float | None = None

    def saw(self, memory: int | None, at: float) -> bool:
        """Take in what a look saw, and when; tell whether it was too much at every look for too long."""
        if memory is None or memory <= self._most:
            self._since = None
            return False
        if self._since is None:
            self._since = at
        return at - self._since >= EXCESS_S


def is_untold(device: Device, others: int, known: Iterable[int | None]) -> bool:
    """Tell whether memory is in use on a GPU of which nobody can say whose it is.

    `others`: bytes in use there when no run had it; `known`: what runs that have it are known to hold.
    """
    return device.gpu.used - others - sum(held or 0 for held in known) > UNTOLD


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
