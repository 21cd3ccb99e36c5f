"""Kills containers whose lease has lapsed, apart from the agent: a process that lives as long as there are leases.

Started as `python -I -S watchdog.py FOLDER URL`, with the standard library alone. In FOLDER: `leases.json` (run -> the
time until which it may live, by this host's monotonic clock), written by the agent; `poke`, a pipe on which the agent
says that it has changed; `lock`, held by the one watchdog that there is. Before it kills, it leaves `ending.json`.
"""
# pathlib would cost this process a megabyte.
# ruff: noqa: PTH108, PTH123

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import select
import socket
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Exit code of one that is not needed.
TAKEN = 3
IDLE_S = 5.0
_AGAIN_S = 0.5
_ANSWER_S = 10.0
_GONE = (404, 409)
_NAME = "gurney-"


class Unix(http.client.HTTPConnection):
    """HTTP over a socket of this host."""

    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=_ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_ANSWER_S)
        self.sock.connect(self._path)


def main(folder: str, url: str) -> int:
    """Watch until there was nothing to be watched for a while."""
    os.chdir(folder)
    lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return TAKEN
    with contextlib.suppress(FileExistsError):
        os.mkfifo("poke", 0o600)
    poke = listen()
    if os.fork():
        return 0
    os.setsid()
    while True:
        watch(poke, url)
        os.close(poke)  # who tells us something from now on sees that nobody hears it
        if not read("leases.json").keys() - _done:
            return 0
        poke = listen()


def listen() -> int:
    """Open both ends of the pipe: so it never ends, and whoever opens the other one sees that somebody reads."""
    return os.open("poke", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def watch(poke: int, url: str) -> None:
    """Kill what lapses, when it lapses, until there was nothing for a while."""
    idle_since = time.monotonic()
    while True:
        leases = {run_id: until for run_id, until in read("leases.json").items() if run_id not in _done}
        now = time.monotonic()
        if leases:
            idle_since = now
        elif now - idle_since >= IDLE_S:
            return
        left = [until - now for run_id, until in leases.items() if until > now or not kill(run_id, url)]
        wait = max(_AGAIN_S, min(left)) if any(each <= 0 for each in left) else min([*left, IDLE_S])
        if select.select([poke], [], [], wait)[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(poke, 4096)


_done: set[str] = set()


def kill(run_id: str, url: str) -> bool:
    """Kill a run's container; False where nobody knows whether it is dead."""
    if run_id in _done:
        return True
    ours = keep_ending(f"runs/{run_id}")
    try:
        status = ask(url, f"/containers/{_NAME}{run_id}/kill?signal=KILL")
    except (OSError, http.client.HTTPException):
        return False
    if status in _GONE and ours:  # it has ended before, for a reason of its own
        with contextlib.suppress(OSError):
            os.unlink(f"runs/{run_id}/ending.json")
    if status < 300 or status in _GONE:  # noqa: PLR2004
        _done.add(run_id)
        return True
    return False


def keep_ending(folder: str) -> bool:
    """Leave the decision; False where one was made before, or the disk is full."""
    draft = f"{folder}/lapsed.tmp"
    try:
        with open(draft, "w") as file:
            json.dump({"cause": "lease", "kill_at": time.time()}, file)  # noqa: TID251
        try:
            os.link(draft, f"{folder}/ending.json")
        finally:
            os.unlink(draft)
    except OSError:
        return False
    return True


def ask(url: str, path: str) -> int:
    """POST to the daemon; returns the status."""
    scheme, _, rest = url.partition("://")
    connection = Unix(rest) if scheme == "unix" else http.client.HTTPConnection(rest, timeout=_ANSWER_S)
    with contextlib.closing(connection):
        connection.request("POST", path)
        return connection.getresponse().status


def read(path: str) -> dict[str, Any]:
    try:
        with open(path) as file:
            content = json.load(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
