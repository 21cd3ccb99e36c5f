"""Tells jobs why they wait: those that wait for longer than a moment, once a minute at most, and only what is news."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from gurney import clock
from gurney.model.base import Reason
from gurney.model.job import WaitReason
from services.scheduler.cluster import Cluster
from services.scheduler.effects import Effects
from services.scheduler.order import Entry
from services.scheduler.plan import Plan

#: A job that waits for less is not told why.
PATIENCE = timedelta(seconds=1)
#: The least time between two messages to one job.
PAUSE = timedelta(minutes=1)
BATCH = 256


@dataclass(frozen=True, slots=True)
class ToldReason:
    """What a job was told last."""

    code: str
    at: datetime


def is_due(entry: Entry, told: ToldReason | None, reason: WaitReason, now: datetime) -> bool:
    """Tell whether a job is to hear this reason now."""
    if now - entry.since < PATIENCE:
        return False
    return told is None or (told.code != reason.code and now - told.at >= PAUSE)


class Waiting:
    """One per scheduler."""

    def __init__(self, cluster: Cluster, effects: Effects) -> None:
        self._cluster = cluster
        self._effects = effects
        self._plan: Plan | None = None
        self._told: dict[str, ToldReason] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._telling: asyncio.Task[None] | None = None

    def look_later(self, plan: Plan) -> None:
        """Look at what this plan left waiting, a moment from now: most of it will be placed by then."""
        self._plan = plan
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE.total_seconds(), self._look)

    async def close(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self._telling:
            await asyncio.wait([self._telling])

    def _look(self) -> None:
        self._timer = None
        queue = self._cluster.queue
        self._told = {job: told for job, told in self._told.items() if queue.get(job)}
        if self._plan is None or not len(queue) or (self._telling and not self._telling.done()):
            return
        now = clock.now()
        due = list(self._due(self._plan, now))
        self._told |= {entry.job_id: ToldReason(reason.code, now) for entry, reason in due}
        self._telling = asyncio.create_task(self._tell(due), name="scheduler:waiting")
        if any(now - lane[-1].since < PATIENCE for lane in queue.lanes.values()):
            self.look_later(self._plan)

    def _due(self, plan: Plan, now: datetime) -> Iterator[tuple[Entry, WaitReason]]:
        for lane in self._cluster.queue.lanes.values():
            for entry in lane:
                reasons = plan.reasons(entry)
                if reasons and is_due(entry, self._told.get(entry.job_id), reasons[0], now):
                    yield entry, reasons[0]

    async def _tell(self, due: list[tuple[Entry, WaitReason]]) -> None:
        for start in range(0, len(due), BATCH):
            batch = due[start : start + BATCH]
            await self._effects.offer(
                [self._effects.waiting(entry, Reason.of(reason.code, reason.message)) for entry, reason in batch]
            )
