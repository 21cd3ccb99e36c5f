"""What /proc tells of processes; one that has just ended is no error but `None`, an empty list or zero."""
# pathlib would cost the resident process a megabyte.
# ruff: noqa: PTH110, PTH208

from __future__ import annotations

import contextlib
import os
import signal

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
#: Kernels without CONFIG_PROC_CHILDREN make us read all of /proc instead.
_CHILDREN = os.path.exists(f"/proc/self/task/{os.getpid()}/children")


class Stat:
    """The fields of /proc/<pid>/stat that we use."""

    __slots__ = ("cpu", "parent", "session", "state", "ticks")

    def __init__(self, raw: bytes) -> None:
        # The second field is the program's name in parentheses and may hold anything.
        fields = raw[raw.rindex(b")") + 2 :].split()
        self.state = fields[0]
        self.parent = int(fields[1])
        self.session = int(fields[3])
        #: Seconds of processor time, its own and that of children that it has reaped.
        self.cpu = sum(map(int, fields[11:15])) / _TICKS_PER_S
        #: Start time in clock ticks since boot: with the pid it names a process for ever.
        self.ticks = int(fields[19])

    @property
    def alive(self) -> bool:
        return self.state not in {b"Z", b"X"}


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    parts = []
    try:
        while part := os.read(fd, 65536):
            parts.append(part)
    except OSError:
        return b""
    finally:
        os.close(fd)
    return b"".join(parts)


def boot_id() -> str:
    return _read("/proc/sys/kernel/random/boot_id").decode().strip()


def stat(pid: int) -> Stat | None:
    raw = _read(f"/proc/{pid}/stat")
    return Stat(raw) if raw else None


def ticks(pid: int) -> int:
    """Return the start time of a process that still runs, else 0."""
    found = stat(pid)
    return found.ticks if found and found.alive else 0


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def children(pid: int) -> list[int]:
    """Return the direct children of all threads of `pid`, ended but unreaped ones included."""
    if not _CHILDREN:
        return [each for each in pids() if (found := stat(each)) and found.parent == pid]
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    return [int(word) for thread in threads for word in _read(f"/proc/{pid}/task/{thread}/children").split()]


def descendants(roots: list[int]) -> list[int]:
    """Return `roots` and everything below them."""
    found: dict[int, None] = {}
    todo = list(roots)
    while todo:
        pid = todo.pop()
        if pid not in found:
            found[pid] = None
            todo += children(pid)
    return list(found)


def has_variable(pid: int, assignment: bytes) -> bool:
    """Tell whether `pid` was started with `NAME=value` in its environment."""
    return assignment in _read(f"/proc/{pid}/environ").split(b"\0")


def resident(pid: int) -> int:
    """Return resident bytes, shared pages counted whole: cheap, and never less than `charged`."""
    raw = _read(f"/proc/{pid}/statm")
    return int(raw.split()[1]) * _PAGE if raw else 0


def charged(pid: int) -> int:
    """Return the bytes that only this process's end would free: its part of anonymous and shared memory, no file pages.

    That is what a container's limit counts, too, since file pages are dropped before a container is killed.
    """
    parts = {b"Pss_Anon:": 0, b"Pss_Shmem:": 0}
    whole = 0
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        words = line.split()
        if words[0] in parts:
            parts[words[0]] = int(words[1]) * 1024
            whole += parts[words[0]]
    if whole:
        return whole
    raw = _read(f"/proc/{pid}/statm").split()  # a process that we may not look into, or an old kernel
    return (int(raw[1]) - int(raw[2])) * _PAGE if raw else 0


def send(pid: int, started: int, number: int) -> None:
    """Signal the process with this pid and start time; never another that got the pid after it."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if ticks(pid) == started:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(fd, number)
    finally:
        os.close(fd)
