"""After a run's end: look at what it left, carry it home, and say how it ended."""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gurney import telemetry
from gurney.model.job import LogInfo, Usage
from gurney.model.run import Outcome
from gurney.tasks import spread
from services.agent import log, output, policy
from services.agent.disk import Disk
from services.agent.effects import Counts
from services.agent.folders import Work, size_of
from services.agent.log import Log
from services.agent.output import Limits, Output
from services.agent.patience import GaveUp
from services.agent.upload import Uploader


@dataclass(frozen=True)
class Left:
    """What a run left behind."""

    output: Output
    metadata: dict[str, Any] | None
    #: How the application says that it failed, if it does.
    exception: str | None
    log: Log
    #: Of the files that it found.
    bytes_in: int
    #: There was no room on the disk to which it wrote, at its end or before.
    on_full_disk: bool

    @property
    def is_nothing(self) -> bool:
        return not self.output and self.log.source is None and not self.on_full_disk

    def without_log(self) -> "Left":
        """Return what is carried home of a run whose log goes nowhere."""
        return replace(self, log=Log())


async def look(work: Work, log_path: Path, limits: Limits, disk: Disk, since: float) -> Left:
    """Look at output and log, in one hop to a thread. `since`: when it began, by the monotonic clock."""
    return await asyncio.to_thread(_look, work, log_path, limits, disk, since)


def _look(work: Work, log_path: Path, limits: Limits, disk: Disk, since: float) -> Left:
    disk.look()
    on_full_disk = disk.was_full_since(since)
    found = output.look_through(work.output, limits)
    kept = log.look_at(log_path, work.log)
    return Left(
        found, output.read_metadata(found), output.read_exception(found), kept, size_of(work.input), on_full_disk
    )


async def carry(left: Left, outcome: Outcome, attempt: int, uploader: Uploader, counts: Counts) -> Outcome:
    """Carry home what the run left; returns the outcome with what there is of it."""
    if left.on_full_disk:
        outcome = policy.on_full_disk(outcome)
    outcome = policy.declared(policy.rejected(outcome, left.output.fault), left.exception)
    usage = (outcome.usage or Usage()).but(bytes_in=left.bytes_in, bytes_out=left.output.bytes)
    outcome = outcome.but(metadata=left.metadata, log_tail=left.log.tail, usage=usage)
    counts.total = len(left.output) + (left.log.source is not None)
    kept: list[LogInfo] = []

    async def keep_log() -> None:
        if left.log.source is not None:
            with telemetry.span("upload log", telemetry.INTERNAL):
                (stored,) = await uploader.store("log", {f"{attempt}.log": left.log.source}, counts)
            kept.append(LogInfo(attempt=attempt, bytes=stored.size, sha256=stored.sha256))

    async def keep_output() -> None:
        if left.output:
            sources = {**left.output.files, **dict.fromkeys(left.output.folders)}
            with telemetry.span("upload results", telemetry.INTERNAL):
                await uploader.store("results", sources, counts)

    try:
        await spread(lambda work: work(), [keep_log, keep_output], 2)
    except GaveUp as error:
        return policy.unstored(outcome, str(error)).but(log=kept[0] if kept else None)
    return outcome.but(log=kept[0] if kept else None, output=bool(left.output))
