"""One live run as the supervisor knows it, and how its end is judged.

A run begins (`pipe` is open until exec is known), runs, is asked to end at most once (`reason` is set by whoever
decides first and never changes), its main process exits (`status`, `stopped_at`), the rest of its processes are
killed, and then its end is written. Only `keeper.py` moves a run along.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

from gurney.runtime.supervisor import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Reply = Callable[[dict[str, Any]], None]

EXITED, TIMEOUT, MEMORY, STOPPED, LEASE = "exited", "timeout", "memory", "stopped", "lease"
LOST, NOT_STARTED = "lost", "not_started"


class Run:
    __slots__ = (
        "cpu",
        "deadline",
        "drain_until",
        "hole",
        "id",
        "kill_at",
        "lease_until",
        "look_at",
        "mark",
        "members",
        "message",
        "peak",
        "pid",
        "pidfd",
        "pipe",
        "reason",
        "replies",
        "search_at",
        "status",
        "stopped_at",
        "stopped_mono",
        "ticks",
    )

    def __init__(self, run_id: str, pid: int, mark: dict[str, Any]) -> None:
        self.id = run_id
        self.pid = pid
        self.mark = mark
        #: Start time of the main process; 0 for our own child, whose pid cannot be used again before we reap it.
        self.ticks = 0
        #: Open where the run is not our child but was adopted.
        self.pidfd = -1
        #: Open until exec succeeded or failed.
        self.pipe = -1
        self.replies: list[Reply] = []
        self.reason = ""
        self.message = ""
        timeout = mark["timeout_s"]
        self.deadline: float | None = None if timeout is None else mark["started_mono"] + timeout
        #: Until when the run may live; None: it has no lease, or ends already for one that lapsed.
        self.lease_until: float | None = mark.get("lease_until")
        self.kill_at: float | None = None
        #: When to look at the memory, and search for orphans of an adopted run; after the exit: for what is left.
        self.look_at = 0.0
        self.search_at = 0.0
        #: Processes of the run by start time, as last seen.
        self.members: dict[int, int] = {}
        self.peak = 0
        #: Up to where its log has a hole.
        self.hole = 0
        #: Seconds of processor time of those that were reaped; of an adopted run, of those that were last seen.
        self.cpu = 0.0
        self.status: int | None = None
        self.stopped_at: float | None = None
        self.stopped_mono = 0.0
        self.drain_until = 0.0

    @property
    def adopted(self) -> bool:
        return self.ticks != 0

    @property
    def running(self) -> bool:
        return self.stopped_at is None

    def exited(self, status: int | None) -> None:
        """Note the end of the main process; `status` None: unknown."""
        self.status = status
        self.stopped_at = _now()
        self.stopped_mono = time.monotonic()
        self.look_at = 0.0
        self.drain_until = self.stopped_mono + 10.0

    def has_exited(self) -> bool:
        """Tell whether the main process ended already although we have not heard of it yet."""
        if self.adopted:
            return procfs.ticks(self.pid) != self.ticks
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def signal_group(self, number: int) -> None:
        try:
            if self.adopted:
                signal.pidfd_send_signal(self.pidfd, 0)
            os.killpg(self.pid, number)
        except OSError:
            self._signal_main(number)

    def _signal_main(self, number: int) -> None:
        """Signal the main process alone: it has not made its group yet, or is gone."""
        with contextlib.suppress(OSError):
            if self.adopted:
                signal.pidfd_send_signal(self.pidfd, number)
            else:
                os.kill(self.pid, number)

    def end(self) -> dict[str, Any]:
        code = None if self.status is None else _exit_code(self.status)
        cause = self.reason or (LOST if self.adopted else EXITED)
        if cause == MEMORY and not self.adopted and code != 128 + signal.SIGKILL:
            cause = EXITED  # it was faster than our signal
        if cause == NOT_STARTED:
            return not_started(self.message)
        return {
            "cause": cause,
            "exit_code": code,
            "started_at": self.mark["started_at"],
            "stopped_at": self.stopped_at,
            "duration_s": self.stopped_mono - self.mark["started_mono"],
            "peak_memory": self.peak or None,
            "cpu_s": round(self.cpu, 6) if self.cpu else None,
            "message": self.message,
        }


def _now() -> float:
    """Return the wall clock; `gurney.clock` would cost half a megabyte here."""
    return time.time()  # noqa: TID251


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def not_started(message: str) -> dict[str, Any]:
    return {**_UNKNOWN, "cause": NOT_STARTED, "message": message}


def lapsed() -> dict[str, Any]:
    """Return the end of a run that never began, because its lease had lapsed."""
    return {**_UNKNOWN, "cause": LEASE}


def lost(mark: dict[str, Any]) -> dict[str, Any]:
    """Return the end of a run of which there is a mark and no process."""
    return {**_UNKNOWN, "cause": LOST, "started_at": mark.get("started_at")}


_UNKNOWN: dict[str, Any] = {
    "cause": LOST,
    "exit_code": None,
    "started_at": None,
    "stopped_at": None,
    "duration_s": None,
    "peak_memory": None,
    "cpu_s": None,
    "message": "",
}


def new_mark(ask: dict[str, Any], cpus: list[int], boot: str) -> dict[str, Any]:
    """Return what the mark tells, but for the process."""
    return {
        "boot": boot,
        "started_at": _now(),
        "started_mono": time.monotonic(),
        "timeout_s": ask["timeout_s"],
        "lease_until": ask.get("lease_until"),
        "grace_s": ask["grace_s"],
        "memory": ask["memory"],
        "cpu": ask["cpu"],
        "cpus": cpus,
    }
