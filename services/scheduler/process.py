"""Whether another process of this host has ended: then nobody needs to wait until its lease lapses. Blocks.

A process is named by the boot, its pid namespace, its pid and its start, which no other process ever shares. Of one
that is not seen from here (another host or container, a kernel that tells none of it) nothing is known.
"""

import os
from pathlib import Path

from gurney.runtime.supervisor import procfs


def own() -> str:
    """Return the name of this process; empty where it has none."""
    here = _here()
    return f"{here} {os.getpid()} {procfs.ticks(os.getpid())}" if here else ""


def has_ended(name: str) -> bool:
    """Tell whether a process of that name is known to have ended."""
    here = _here()
    where, _, rest = name.rpartition(" ")
    where, _, pid = where.rpartition(" ")
    if not here or where != here or not pid.isdecimal() or not rest.isdecimal():
        return False
    found = procfs.stat(int(pid))
    if found is None:  # it may also be hidden from us
        return not _exists(int(pid))
    return not found.alive or found.ticks != int(rest)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _here() -> str:
    try:
        return f"{procfs.boot_id()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
