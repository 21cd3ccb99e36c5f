"""What a container has used so far: from the files of its control group, where this host shows them, or the daemon.

Both versions of control groups (Linux: admin-guide/cgroup-v1 and cgroup-v2.rst), both of the daemon's drivers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path("/sys/fs/cgroup")
PROCESSES = Path("/proc")
_FOLDERS = ("docker/{}", "system.slice/docker-{}.scope")


@dataclass(frozen=True, slots=True)
class Used:
    """Up to now; None: not told."""

    #: Seconds of processor time.
    cpu_s: float | None
    #: Bytes that processes hold, without the cache of files.
    memory: int | None


def read(container: str, root: Path = ROOT) -> Used | None:
    """Return what the files tell; None where this host does not show them, or no longer. Blocks for a moment."""
    for pattern in _FOLDERS:
        folder = pattern.format(container)
        if (text := _text(root / folder / "cpu.stat")) is not None:
            return Used(_numbers(text)["usage_usec"] / 1e6, resident(_numbers(_text(root / folder / "memory.stat"))))
        if (text := _text(root / "cpuacct" / folder / "cpuacct.usage")) is not None:
            return Used(int(text) / 1e9, resident(_numbers(_text(root / "memory" / folder / "memory.stat"))))
    return None


def container_of(pid: int, containers: Iterable[str], processes: Path = PROCESSES) -> str | None:
    """Return which of these containers a process of the host is in, also in a group below its own. Blocks."""
    groups = _text(processes / str(pid) / "cgroup") or ""
    return next((container for container in containers if container in groups), None)


def told(stats: Mapping[str, Any]) -> Used:
    """Return what the daemon's statistics tell."""
    cpu = ((stats.get("cpu_stats") or {}).get("cpu_usage") or {}).get("total_usage")
    memory = resident((stats.get("memory_stats") or {}).get("stats") or {})
    return Used(cpu / 1e9 if cpu else None, memory)


def resident(memory: Mapping[str, int]) -> int | None:
    """Return the memory that processes hold, by the `memory.stat` of either version."""
    if "total_rss" in memory:
        return int(memory["total_rss"])
    return int(memory["anon"]) + int(memory.get("shmem", 0)) if "anon" in memory else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _numbers(text: str | None) -> dict[str, int]:
    pairs = (line.split() for line in (text or "").splitlines())
    return {name: int(value) for name, value in pairs}
