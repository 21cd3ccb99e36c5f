"""The child's side of a start: from fork to exec. Nothing here returns.

What went wrong before exec is told through the pipe in one letter and a text; exec itself closes it in silence:
`m` the mark was there already, `n` the run could not begin (a text), `x` the program could not be executed (a text).
"""
# pathlib would cost the resident process a megabyte.

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal

from gurney.runtime.supervisor import procfs, records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MARKED, NOT_BEGUN, NOT_EXECUTED = b"m", b"n", b"x"
#: As shells have it.
NOT_FOUND_CODE, NOT_EXECUTABLE_CODE = 127, 126
#: Held back over the fork, so that none is lost to a handler of the parent.
HELD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_DEFAULTS = (*HELD, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ)


def become(absolute: str, ask: dict[str, Any], mark: dict[str, Any], pipe: int) -> None:
    """Turn this forked process into the run; never returns."""
    try:
        try:
            _settle(absolute, ask, mark)
        except FileExistsError:
            os.write(pipe, MARKED)
            os._exit(0)
        except (OSError, ValueError) as error:
            os.write(pipe, NOT_BEGUN + str(error).encode()[:2000])
            os._exit(NOT_EXECUTABLE_CODE)
        code, text = _execute(ask["argv"], {**ask["env"], records.FOLDER_VARIABLE: absolute})
        os.write(2, f"gurney: {text}\n".encode())
        os.write(pipe, NOT_EXECUTED + text.encode()[:2000])
        os._exit(code)
    finally:
        os._exit(NOT_EXECUTABLE_CODE)


def _settle(absolute: str, ask: dict[str, Any], mark: dict[str, Any]) -> None:
    if not ask["argv"]:
        raise ValueError("the command is empty")
    os.setsid()
    for number in _DEFAULTS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
    log = os.open(f"{absolute}/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.chdir(ask["cwd"])
    os.umask(0o022)
    if mark["cpus"]:
        os.sched_setaffinity(0, mark["cpus"])
    _prefer_for_oom()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would lie in the MAP's copy and hold patient data
    pid = os.getpid()
    records.mark(absolute, {**mark, "pid": pid, "ticks": procfs.ticks(pid)})
    os.dup2(log, 1)
    os.dup2(log, 2)


def _prefer_for_oom() -> None:
    """Where the host runs out of memory the kernel shall take an application, not the server or us."""
    with contextlib.suppress(OSError):
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"500")
        finally:
            os.close(fd)


def _execute(argv: list[str], env: dict[str, str]) -> tuple[int, str]:
    """Execute, or say why not."""
    try:
        os.execvpe(argv[0], argv, env)  # noqa: S606  that is the point
    except OSError as error:
        missing = error.errno in {errno.ENOENT, errno.ENOTDIR}
        return NOT_FOUND_CODE if missing else NOT_EXECUTABLE_CODE, f"{argv[0]}: {error.strerror}"
    except ValueError as error:
        return NOT_EXECUTABLE_CODE, f"{argv[0]!r}: {error}"
