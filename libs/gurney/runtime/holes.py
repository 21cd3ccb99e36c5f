"""Long logs: disk is used for the first and the last of a file alone, as nobody keeps its middle (fallocate(2)).

The supervisor has this, too, so it imports little.
"""

from __future__ import annotations

import ctypes

#: What is kept of a log at either end.
HEAD = TAIL = 32 << 20
#: A hole is made when there is this much more to be left out.
_STEP = 16 << 20
_KEEP_SIZE, _PUNCH_HOLE = 1, 2

_libc = ctypes.CDLL(None)


def punch(fd: int, size: int, since: int) -> int:
    """Leave out what is neither first nor last of a file of this size, which has no hole from `since` on.

    Returns from where on there is none now. Where the file system makes no holes, the disk is used after all.
    """
    since = max(since, HEAD)
    end = size - TAIL
    if end - since < _STEP:
        return since
    call = getattr(_libc, "fallocate", None)
    if call is not None:
        call(fd, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(since), ctypes.c_int64(end - since))
    return end
