"""The files of a run, relative to the supervisor's folder, and what a crash may leave of them.

In `runs/<run_id>/`: `started` is the mark: it appears whole and exclusively (hard link), before the application is
executed, and names the process and the limits. `ending.json` says that the run was asked to end, and why. `end.json`
appears whole (rename) when every process of the run is gone. `log` is the merged output, `tmp/` the run's TMPDIR. A
forgotten run is moved to `trash/` first. `leases.json` beside `runs/` says until when each run may live (rename).
"""
# pathlib would cost the resident process a megabyte.
# ruff: noqa: PTH100, PTH103, PTH104, PTH105, PTH108, PTH109, PTH120, PTH123, PTH208

from __future__ import annotations

import contextlib
import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RUNS = "runs"
TRASH = "trash"
LEASES = "leases.json"
FOLDER_VARIABLE = "GURNEY_RUN_FOLDER"


def gone() -> bool:
    """Tell whether the supervisor's folder was removed: then nothing can be kept, and nobody can ask for it."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def folder(run_id: str) -> str:
    """Return the run's folder; ValueError for a name that could lead elsewhere."""
    if not run_id or "/" in run_id or "\0" in run_id or run_id.startswith("."):
        raise ValueError(f"not a run id: {run_id!r}")
    return f"{RUNS}/{run_id}"


def prepare(run_id: str) -> str:
    """Make the run's folders, return the absolute path."""
    made = folder(run_id)
    os.makedirs(f"{made}/tmp", exist_ok=True)  # noqa: S108  below our own folder
    return os.path.abspath(made)


def token(run_id: str) -> bytes:
    """Return the assignment in the environment of the run's processes by which they are known on the whole host."""
    return os.fsencode(f"{FOLDER_VARIABLE}={os.path.abspath(folder(run_id))}")


def sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(path: str, content: dict[str, Any], *, durable: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, json.dumps(content).encode())
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


def _read(path: str) -> dict[str, Any] | None:
    """Return the record, None where there is none; a torn one is empty."""
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def mark(absolute: str, content: dict[str, Any]) -> None:
    """Leave the mark, durably, or raise FileExistsError."""
    draft = f"{absolute}/started.{os.getpid()}"
    _write(draft, content, durable=True)
    try:
        os.link(draft, f"{absolute}/started")
    finally:
        os.unlink(draft)
    sync(absolute)
    sync(os.path.dirname(absolute))


def mark_of(run_id: str) -> dict[str, Any] | None:
    return _read(f"{folder(run_id)}/started")


def end_of(run_id: str) -> dict[str, Any] | None:
    return _read(f"{folder(run_id)}/end.json")


def write_end(run_id: str, end: dict[str, Any]) -> None:
    draft = f"{folder(run_id)}/end.tmp"
    _write(draft, end, durable=True)
    os.replace(draft, f"{folder(run_id)}/end.json")


def write_ending(run_id: str, reason: str, kill_at: float) -> None:
    """Keep the decision for a supervisor that comes after us; a full disk must not keep us from ending a run."""
    draft = f"{folder(run_id)}/ending.tmp"
    with contextlib.suppress(OSError):
        _write(draft, {"reason": reason, "kill_at": kill_at}, durable=False)
        os.replace(draft, f"{folder(run_id)}/ending.json")


def ending_of(run_id: str) -> dict[str, Any]:
    return _read(f"{folder(run_id)}/ending.json") or {}


def write_leases(leases: dict[str, float]) -> None:
    """Keep the leases for a supervisor that comes after us; on a full disk it has older ones, which lapse earlier."""
    draft = f"{LEASES}.tmp"
    with contextlib.suppress(OSError):
        _write(draft, leases, durable=False)
        os.replace(draft, LEASES)


def leases() -> dict[str, float]:
    return _read(LEASES) or {}


def run_ids() -> list[str]:
    return [name for name in os.listdir(RUNS) if not name.startswith(".")]


def discard(run_id: str) -> None:
    """Move the run's folder out of sight in one step; the server removes it at leisure."""
    for number in range(1_000_000):
        try:
            os.rename(folder(run_id), f"{TRASH}/{run_id}.{number}")
        except FileNotFoundError:
            return
        except OSError:  # that name is taken: the run id was used again after an earlier forget
            if not os.path.lexists(f"{TRASH}/{run_id}.{number}"):
                raise
        else:
            return
