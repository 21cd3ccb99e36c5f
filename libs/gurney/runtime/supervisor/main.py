"""`python -I -S main.py FOLDER [IDLE_SECONDS]`: become the supervisor of FOLDER.

Exits 0 once the supervisor listens on FOLDER/supervisor.sock (it goes on in the background), 3 when another one has the
folder. One at a time: FOLDER/supervisor.lock is held by flock for as long as the process lives, whatever kills it.
"""
# pathlib would cost the resident process a megabyte.
# ruff: noqa: PTH100, PTH103, PTH108, PTH120, PTH123

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys

TAKEN = 3
_PR_SET_CHILD_SUBREAPER = 36


def main(folder: str, idle_s: float) -> int:
    import fcntl  # not where a server is imported that will never start a supervisor

    os.umask(0o077)
    os.chdir(folder)
    lock = os.open("supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return TAKEN
    ours, theirs = os.pipe()
    if os.fork():
        os.close(theirs)
        return 0 if os.read(ours, 1) else 1
    os.close(ours)
    os.setsid()
    _serve(theirs, idle_s)
    return 0


def _serve(ready: int, idle_s: float) -> None:
    # The package is found by our own path: -I and -S leave nothing else on it.
    sys.path.append(os.path.abspath(f"{os.path.dirname(os.path.abspath(__file__))}/../../.."))
    from gurney.runtime.supervisor import records
    from gurney.runtime.supervisor.server import Server

    _adopt_orphans()
    for name in (records.RUNS, records.TRASH):
        os.makedirs(name, exist_ok=True)
    _remove("supervisor.sock")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("supervisor.sock")  # relative: a socket's path is limited to about 107 bytes
    server = Server(listening, idle_s)
    for _ in server.keeper.listing():
        pass  # what an earlier supervisor left is taken over
    listening.listen(64)
    with open("supervisor.pid", "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    gc.collect()
    gc.freeze()  # so that collecting in a forked child copies no pages
    os.write(ready, b"1")
    os.close(ready)
    server.run()
    _remove("supervisor.sock")
    _remove("supervisor.pid")


def _adopt_orphans() -> None:
    """Make processes whose parent ended our children instead of init's: a run cannot escape by forking twice."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _remove(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name)


if __name__ == "__main__":
    # No clean-up of the interpreter: there is nothing to flush and runs are not ours to wait for.
    os._exit(main(sys.argv[1], float(sys.argv[2])))
