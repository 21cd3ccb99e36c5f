"""Our files of a run, in `docker/runs/<run id>/`, and what a crash may leave of them. All of it blocks.

`started` is the mark: it appears whole and exclusively (hard link) and durably, before the daemon is told to start the
container; who finds it there does not start. `ending.json` says that the run was asked to end, and why. `end.json`
appears whole (rename) when the end is known. `log` is what the run has said. A container without a mark never ran.
"""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gurney.runtime.port import Cause, End


@dataclass(frozen=True, slots=True)
class Mark:
    """What has to be known of a run that may be running."""

    container: str
    #: The container whose network namespace it joined; empty: none.
    network: str
    project: str
    memory: int
    timeout_s: float | None
    #: Wall clock, before the daemon was told to start it.
    started_at: float


@dataclass(frozen=True, slots=True)
class Ending:
    """The decision to end a run, and when it is to be killed (wall clock)."""

    cause: Cause
    kill_at: float


@dataclass(frozen=True, slots=True)
class Kept:
    """A run as its files tell."""

    mark: Mark | None
    ending: Ending | None
    end: End | None


class Records:
    """The folder of all runs."""

    def __init__(self, folder: Path) -> None:
        self.runs = folder / "runs"
        self._trash = folder / "trash"

    def open(self) -> dict[str, Kept]:
        """Make the folders, clear away what was forgotten, and return what is kept."""
        self.runs.mkdir(parents=True, exist_ok=True)
        self.runs.parent.chmod(0o700)
        shutil.rmtree(self._trash, ignore_errors=True)
        found = {path.name: self._read(path) for path in self.runs.iterdir()}
        for run_id in [run_id for run_id, kept in found.items() if kept.mark is None and kept.end is None]:
            shutil.rmtree(self.runs / run_id, ignore_errors=True)
            del found[run_id]
        return found

    def log(self, run_id: str) -> Path:
        return self.runs / run_id / "log"

    def prepare(self, run_id: str) -> None:
        (self.runs / run_id).mkdir(exist_ok=True)

    def mark(self, run_id: str, mark: Mark) -> None:
        """Leave the mark, durably; FileExistsError where there is one."""
        folder = self.runs / run_id
        draft = folder / "started.tmp"
        _write(draft, asdict(mark), durable=True)
        try:
            os.link(draft, folder / "started")
        finally:
            draft.unlink()
        _sync(folder)
        _sync(self.runs)

    def unmark(self, run_id: str) -> None:
        """Take back the mark of a container that surely never began."""
        (self.runs / run_id / "started").unlink(missing_ok=True)

    def keep_ending(self, run_id: str, ending: Ending) -> None:
        """Keep the decision for who comes after us; a full disk must not keep us from ending a run."""
        with suppress(OSError):
            _replace(self.runs / run_id / "ending.json", asdict(ending))

    def keep_end(self, run_id: str, end: End) -> None:
        """Keep the end; without it, it is read off the container again."""
        with suppress(OSError):
            self.prepare(run_id)
            _replace(self.runs / run_id / "end.json", _plain(end))

    def discard(self, run_id: str) -> None:
        """Have the run forgotten in one step."""
        self._trash.mkdir(exist_ok=True)
        grave = self._trash / f"{run_id}.{os.urandom(6).hex()}"
        with suppress(FileNotFoundError):
            (self.runs / run_id).rename(grave)
            shutil.rmtree(grave, ignore_errors=True)

    def _read(self, folder: Path) -> Kept:
        mark, ending, end = (_load(folder / name) for name in ("started", "ending.json", "end.json"))
        return Kept(
            None if mark is None else Mark(**mark),
            None if ending is None else Ending(Cause(ending["cause"]), ending["kill_at"]),
            None if end is None else _end(end),
        )


def _plain(end: End) -> dict[str, Any]:
    plain = asdict(end)
    for name in ("started_at", "stopped_at"):
        plain[name] = plain[name] and plain[name].isoformat()
    return plain


def _end(plain: dict[str, Any]) -> End:
    for name in ("started_at", "stopped_at"):
        plain[name] = plain[name] and datetime.fromisoformat(plain[name])
    return End(**{**plain, "cause": Cause(plain["cause"])})


def _load(path: Path) -> dict[str, Any] | None:
    """Return the record; what is torn counts as not there."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _replace(path: Path, content: dict[str, Any]) -> None:
    draft = path.with_suffix(".tmp")
    _write(draft, content, durable=False)
    draft.replace(path)


def _write(path: Path, content: dict[str, Any], *, durable: bool) -> None:
    with path.open("wb") as file:
        file.write(json.dumps(content).encode())
        if durable:
            file.flush()
            os.fsync(file.fileno())


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
