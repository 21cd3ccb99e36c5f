"""How much memory a run holds, and when to look again.

The cheap sum of resident pages counts shared ones several times, so it can only be too high: the exact figure is asked
for when it is past the limit. The next look comes when a run that fills memory as fast as it can could be there, and
late enough that looking takes at most a twentieth of a core. Address-space limits (RLIMIT_AS) are no way to do it:
GPU libraries and runtimes with garbage collectors reserve far more than they use.
"""

from __future__ import annotations

import resource

from gurney.runtime.supervisor import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: Bytes a second that a run is taken to fill at most.
_FASTEST = 2 << 30
_SOONEST, _LATEST = 0.02, 0.5
_SLACK = 1 << 20


def used(pids: Iterable[int], limit: int) -> int:
    """Return the bytes that the processes hold; exact where it matters."""
    pids = list(pids)
    total = sum(map(procfs.resident, pids))
    if 0 < limit < total:
        total = sum(map(procfs.charged, pids))
    return total


def pause(held: int, limit: int, cost: float) -> float:
    """Return the seconds until the next look; `cost` is what this one took."""
    room = (limit - held) / _FASTEST if limit else _LATEST
    return max(_SOONEST, 20 * cost, min(room, _LATEST))


def peak_of(usage: resource.struct_rusage) -> int:
    """Return the highest resident memory of an ended child, 0 where it cannot be told from ours.

    A forked process starts with our own pages, which count for it until it executes something else.
    """
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + _SLACK
    peak = usage.ru_maxrss * 1024
    return peak if peak > ours else 0
