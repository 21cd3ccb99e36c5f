"""What this host has for runs: cores and memory, within what the kernel grants this process."""

import os
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

from gurney.model.resources import Amount
from gurney.settings import Settings

#: Returns the text of a file, None where there is none.
Read = Callable[[str], str | None]

_CGROUPS = "/sys/fs/cgroup"


def capacity(settings: Settings, cores: int, read: Read) -> Amount:
    """Return what is given to runs; `cores`: on how many this process may run."""
    cpu = settings.cpu or min([float(cores), *_cpu_quotas(read)])
    memory = settings.memory or max(0, min([_host_memory(read), *_memory_limits(read)]) - settings.reserve_memory)
    return Amount(cpu=cpu, memory=memory)


def measure(settings: Settings) -> Amount:
    """Return what is given to runs of this host. Blocks."""
    return capacity(settings, len(os.sched_getaffinity(0)), _read)


def _read(path: str) -> str | None:
    try:
        with open(path) as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return None


def _host_memory(read: Read) -> int:
    for line in (read("/proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemTotal":
            return int(rest.split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _memory_limits(read: Read) -> Iterator[int]:
    for folder in _folders(read, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = (read(f"{folder}/{name}") or "").strip()
            if text.isdecimal():  # else `max`
                yield int(text)


def _cpu_quotas(read: Read) -> Iterator[float]:
    for folder in _folders(read, "cpu"):
        texts = (read(f"{folder}/cpu.max") or "").split()  # version 2: quota and period
        if not texts:
            texts = [(read(f"{folder}/cpu.cfs_{name}_us") or "").strip() for name in ("quota", "period")]
        quota, period = (int(text) if text.isdecimal() else 0 for text in texts[:2])
        if quota and period:
            yield quota / period


def _folders(read: Read, controller: str) -> Iterator[str]:
    """Yield the folders of the controller's groups that this process is in, innermost first, in both versions."""
    for line in (read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = f"{_CGROUPS}/{controller}" if controllers else _CGROUPS
        group = PurePosixPath(path)
        for folder in (group, *group.parents):
            yield root + str(folder).rstrip("/")
