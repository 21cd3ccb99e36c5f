"""What agents tell of runs, and cancellation: each changes one placement by compare-and-set."""

import asyncio
from collections.abc import Sequence

from gurney import clock, ids, telemetry
from gurney.errors import NotFound
from gurney.model.common import Empty
from gurney.model.event import Event
from gurney.model.job import CancelJob
from gurney.model.run import Confirm, Confirmed, Outcome, Placement, RunEnded, RunReport
from services.scheduler import machine
from services.scheduler.cluster import Notes
from services.scheduler.ledger import Ledger
from services.scheduler.office import Office

#: `running` is written this long after it was reported: an end that comes meanwhile takes it along in one write.
SETTLE_S = 0.02
#: The fewest seconds between two messages with the counts of one phase.
COUNTS_EVERY_S = 2.0

_log = telemetry.log("scheduler")


def is_news(notes: Notes, report: RunReport, now: float) -> bool:
    """Tell whether a report is worth a message."""
    return notes.phase != report.phase or notes.phase_at is None or now - notes.phase_at >= COUNTS_EVERY_S


class Runs:
    """Answers agents."""

    def __init__(self, office: Office, ledger: Ledger) -> None:
        self._tenure = office.tenure
        self._cluster = office.cluster
        self._presence = office.presence
        self._ledger = ledger
        self._effects = office.effects

    async def confirm(self, question: Confirm) -> Confirmed:
        """Say whether the node may start the run: at our own epoch, which must be the newest that the agent knows."""
        self._tenure.check_epoch(question.epoch)
        node, asked, epoch = question.node, question.epoch, self._cluster.epoch
        try:
            placement = await self._ledger.change(
                question.run_id, lambda found: machine.confirmed(found, node, asked, epoch, clock.now())
            )
        except NotFound:
            return Confirmed(start=False, message="there is no such placement")
        refusal = machine.refusal(placement, node, asked, epoch)
        if refusal is None:
            self._presence.confirmed(placement.id, clock.monotonic())
        return Confirmed(start=refusal is None, message=refusal or "")

    async def ended(self, question: RunEnded) -> Empty:
        """Record how a run ended; answered whenever the end is known, this one or an earlier one."""
        await self.end(question.run_id, question.node, question.outcome)
        return Empty()

    async def end(self, run_id: str, node: str, outcome: Outcome) -> None:
        running_since = self._cluster.notes(run_id).running_since
        try:
            await self._ledger.change(
                run_id, lambda found: machine.ended(found, node, outcome, clock.now(), running_since)
            )
        except NotFound:
            _log.info("end of no placement", run=run_id)

    async def reported(self, subject: str, data: bytes) -> None:
        """Follow the phases of a run before its end."""
        del subject
        report = RunReport.decode(data)
        placement = self._cluster.placements.get(report.run_id)
        if placement is None or placement.node != report.node:
            return
        if report.phase == "running" and placement.started_at is None:
            await self._running(report.run_id)
        else:
            await self._progress(placement, report)

    async def _running(self, run_id: str) -> None:
        notes = self._cluster.notes(run_id)
        at = notes.running_since = notes.running_since or clock.now()
        notes.phase = "running"
        await asyncio.sleep(SETTLE_S)
        if run_id in self._cluster.placements:
            await self._ledger.change(run_id, lambda found: machine.started(found, at))

    async def _progress(self, placement: Placement, report: RunReport) -> None:
        notes, now = self._cluster.notes(placement.id), clock.monotonic()
        if is_news(notes, report, now):
            notes.phase, notes.phase_at = report.phase, now
            await self._effects.offer([self._effects.progress(placement, report)])

    async def on_cancel(self, subject: str, data: bytes) -> None:
        """Cancel an attempt, as the job service asks."""
        del subject
        message = CancelJob.decode(data)
        await self.cancel(message.job_id, message.attempt)

    async def cancel(self, job_id: str, attempt: int) -> None:
        """Cancel an attempt: before its placement, before its start, or by a stop."""
        self._cluster.queue.drop(job_id, attempt)
        self._ledger.on_room()
        run_id, outcome = ids.run_id(job_id, attempt), machine.cancel_outcome()
        while True:
            try:
                await self._ledger.change(
                    run_id, lambda found: machine.canceled(found, outcome, clock.now()), self._stop
                )
            except NotFound:
                never = machine.never_placed(job_id, attempt, outcome, self._cluster.epoch, clock.now())
                if not await self._ledger.insert(never):
                    continue  # it was placed at this moment
            return

    def _stop(self, placement: Placement) -> Sequence[Event]:
        """Tell the agent too: it may hold a start that it has not confirmed yet."""
        return [self._effects.stop(placement)] if placement.node else []
