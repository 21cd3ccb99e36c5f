"""What a host has for runs, as files of the kernel tell it."""

import pytest

from gurney.settings import Settings
from services.agent import inventory

GIB = 1 << 30
MEMINFO = f"MemTotal:       {16 * GIB // 1024} kB\nMemFree:  1 kB\n"


@pytest.mark.parametrize(
    ("files", "cpu", "memory"),
    [
        ({}, 4, 15 * GIB),
        ({"/proc/self/cgroup": "0::/\n"}, 4, 15 * GIB),
        (
            {
                "/proc/self/cgroup": "0::/a/b\n",
                "/sys/fs/cgroup/a/cpu.max": "150000 100000\n",
                "/sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "/sys/fs/cgroup/a/memory.max": f"{8 * GIB}\n",
                "/sys/fs/cgroup/a/b/memory.max": "max\n",
            },
            1.5,
            7 * GIB,
        ),
        (
            {
                "/proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/x\n1:name=systemd:/y\n",
                "/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "200000\n",
                "/sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "/sys/fs/cgroup/memory/x/memory.limit_in_bytes": f"{2 * GIB}\n",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            2,
            1 * GIB,
        ),
    ],
)
def test_the_least_that_the_kernel_grants_counts(files: dict[str, str], cpu: float, memory: int) -> None:
    """Cores and memory are the host's, less where a group of this process has a limit, in both versions of cgroups."""
    settings = Settings(reserve_memory=GIB)
    found = inventory.capacity(settings, 4, {"/proc/meminfo": MEMINFO, **files}.get)
    assert (found.cpu, found.memory) == (cpu, memory)


def test_settings_win() -> None:
    """What the settings give to runs is given, whatever the host has."""
    found = inventory.capacity(Settings(cpu=0.5, memory=7), 4, {"/proc/meminfo": MEMINFO}.get)
    assert (found.cpu, found.memory) == (0.5, 7)


def test_a_host_without_room_gives_nothing() -> None:
    """A reserve larger than the host leaves no memory, not less than none."""
    found = inventory.capacity(Settings(reserve_memory=99 * GIB), 4, {"/proc/meminfo": MEMINFO}.get)
    assert found.memory == 0


def test_this_host_has_something() -> None:
    """The host of the tests has cores and memory."""
    found = inventory.measure(Settings(reserve_memory=0))
    assert found.cpu > 0
    assert found.memory > 0
