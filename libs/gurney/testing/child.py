"""A program that tests run beside themselves: started, paused, killed, started again, and gone with its owner.

The program hangs on a small shell that reads the owner's pipe: when the owner ends in whatever way, SIGKILL included,
the pipe closes and the shell ends the program by its pid. Methods block: call them off the loop.
"""

import contextlib
import http.client
import os
import secrets
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

GONE_WITHIN_S = 15.0
FROZEN_WITHIN_S = 5.0
LOOPBACK = "127.0.0.1"
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")

GUARD = '"$@" >&2 & echo $!; exec >&2; read -r _; kill -TERM $! 2>/dev/null; kill -CONT $! 2>/dev/null; wait $!'


def freeze(pid: int) -> None:
    """Stop a process and return when every thread of it has: the signal is still on its way when `kill` returns."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + FROZEN_WITHIN_S
    while not _is_frozen(pid) and time.monotonic() < deadline:
        time.sleep(0.001)


def _is_frozen(pid: int) -> bool:
    threads = Path(f"/proc/{pid}/task").glob("*/stat")
    return all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in threads)


def free_port() -> int:
    """Return a loopback port that nobody has now, and that the kernel gives to no outgoing connection meanwhile."""
    lowest_given = int(EPHEMERAL.read_text().split()[0])
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, secrets.choice(range(10_000, lowest_given))))
            return int(probe.getsockname()[1])


class Child:
    """One program. Its output goes to `log`, start after start."""

    def __init__(self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.command = command
        self.log = log
        self.environment = dict(environment or {})
        self._guard: subprocess.Popen[str] | None = None
        self._pid: int | None = None

    @property
    def pid(self) -> int:
        if self._pid is None:
            raise RuntimeError(f"{self.command[0]} does not run")
        return self._pid

    @property
    def runs(self) -> bool:
        return self._guard is not None and self._guard.poll() is None

    def start(self) -> Self:
        """Start the program; returns before it is ready."""
        if self.runs:
            raise RuntimeError(f"{self.command[0]} runs already")
        with self.log.open("ab") as log:
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", GUARD, "guard", *self.command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | self.environment,
                start_new_session=True,
            )
        self._pid = int(self._guard.stdout.readline()) if self._guard.stdout else None
        return self

    def until(self, ready: Callable[[], bool], within: float) -> Self:
        """Return once `ready` says so; raises `TimeoutError` with the end of the log."""
        deadline = time.monotonic() + within
        while not ready():
            if not self.runs or time.monotonic() > deadline:
                self.stop()
                raise TimeoutError(f"{self.command[0]} is not ready: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.01)
        return self

    def stop(self) -> int:
        """End the program, by SIGKILL when it does not go; returns its exit code, 0 when it was not there."""
        guard, self._guard, self._pid = self._guard, None, None
        if guard is None:
            return 0
        try:
            guard.communicate(timeout=GONE_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(guard.pid, signal.SIGKILL)
            guard.communicate()
        return guard.returncode

    def kill(self) -> None:
        """End the program by SIGKILL, as a crash does."""
        os.kill(self.pid, signal.SIGKILL)
        self.stop()

    def pause(self) -> None:
        """Freeze the program: its connections stay open and nothing answers once this returns."""
        freeze(self.pid)

    def resume(self) -> None:
        """Let a frozen program go on."""
        os.kill(self.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def answers(url: str) -> bool:
    """Tell whether a page of this host is there and well."""
    try:
        with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - our own, of http
            return True
    except (OSError, http.client.HTTPException):  # a status that is no success is the first of these, too
        return False
