"""The agent's journal: which runs this node has taken on. One file per run, replaced by rename, in `agent/journal`.

Nothing here is synced to disk, because nothing that a power cut may take is needed after it. A kill of the agent loses
no write: the kernel has it. A power cut ends every run of the host too, so an entry lost with it is of a run that the
next heartbeat rightly does not name; a start that nobody confirmed yet is sent again by the scheduler. An outcome that
was collected and not yet reported goes too: then the attempt is lost with the node, as it would be a moment earlier.
"""

import asyncio
import itertools
from pathlib import Path

from pydantic import ValidationError

from gurney import telemetry
from gurney.model.base import Message, Timestamp
from gurney.model.job import Timings
from gurney.model.run import Outcome, StartRun
from services.agent.machine import Kept

_log = telemetry.log("journal")
_drafts = itertools.count()


class Entry(Message):
    """What is kept of a run until the scheduler knows how it ended."""

    start: StartRun
    #: Trace context of the start.
    traceparent: str | None = None
    #: When the run's span began; it ends with the run, whichever life of the agent that is in.
    accepted_at: Timestamp | None = None
    #: A stop came.
    stopped: bool = False
    #: Why it was ended by us: the GPU memory that it held. None: it was not.
    excess: str | None = None
    #: Known when output and log are at home, or when the run could not start.
    outcome: Outcome | None = None
    #: Seconds that image and input took to come here; None: not known yet, or too short to be kept.
    pulling: float | None = None
    staging: float | None = None

    @property
    def run_id(self) -> str:
        return self.start.run_id

    @property
    def timings(self) -> Timings:
        return Timings(pulling=self.pulling, staging=self.staging)

    @property
    def kept(self) -> Kept:
        if self.outcome is not None:
            return Kept.DECIDED
        return Kept.STOPPED if self.stopped else Kept.ACCEPTED


class Journal:
    """Read once at the start, then written only. Who writes one run's entry does so one write at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._epoch_file = folder.parent / "epoch"
        #: The highest leadership of a scheduler that this node has heard of.
        self.epoch = 0

    def open(self) -> list[Entry]:
        """Return the entries, oldest first. Blocks."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self.epoch = _read_number(self._epoch_file)
        found = [_read(path) for path in sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)]
        return [entry for entry in found if entry is not None]

    def write(self, entry: Entry) -> None:
        """Keep the entry. Blocks."""
        _replace(self._folder / f"{entry.run_id}.json", entry.encode())

    async def keep(self, entry: Entry) -> None:
        """Keep the entry."""
        await asyncio.to_thread(self.write, entry)

    def drop(self, run_id: str) -> None:
        """Forget the run. Blocks."""
        (self._folder / f"{run_id}.json").unlink(missing_ok=True)

    async def raise_epoch(self, epoch: int) -> None:
        """Remember a newer leadership."""
        if epoch > self.epoch:
            await asyncio.to_thread(_replace, self._epoch_file, str(epoch).encode())
            self.epoch = max(epoch, self.epoch)


def _read(path: Path) -> Entry | None:
    """Return the entry of a file; what a crash left half-way goes."""
    try:
        if path.suffix == ".json":
            return Entry.decode(path.read_bytes())
    except ValidationError:
        _log.warning("journal entry cannot be read and is dropped", file=path.name)
    path.unlink()
    return None


def _read_number(path: Path) -> int:
    try:
        return int(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return 0


def _replace(path: Path, data: bytes) -> None:
    draft = path.with_suffix(f".{next(_drafts)}.tmp")
    draft.write_bytes(data)
    draft.replace(path)
