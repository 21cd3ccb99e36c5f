"""What the agent asks and tells: the scheduler of runs and of itself, the MAP service of the MAPs that it has read."""

import asyncio
from typing import Literal, Self

from gurney import clock, ids, telemetry
from gurney.bus import Bus
from gurney.errors import GurneyError
from gurney.model.base import Message
from gurney.model.event import Event, event_of
from gurney.model.map import InspectReport
from gurney.model.run import Confirm, Heartbeat, Outcome, RunEnded, RunReport, StartRun
from gurney.subjects import HEARTBEAT, INSPECT_REPORT, RUN_REPORT, SCHEDULER_CONFIRM, SCHEDULER_ENDED
from services.agent.claim import Claim
from services.agent.patience import Crew, delays
from services.agent.policy import is_final

Phase = Literal["pulling", "staging", "running", "collecting"]

#: A phase that is shorter than this many seconds is told by the end of the run alone, with its times and timings.
WORTH_TELLING_S: dict[Phase, float] = {"pulling": 1.0, "staging": 1.0, "running": 0.1, "collecting": 1.0}
#: Seconds between two reports of the same phase's counts.
COUNTS_S = 2.0
#: Seconds that reports under way get when the agent ends.
_LAST_REPORTS_S = 1.0

_log = telemetry.log("agent")


class Effects:
    """Under one node's name."""

    def __init__(self, bus: Bus, node: str, crew: Crew) -> None:
        self._bus = bus
        self._node = node
        self._crew = crew

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Leave no report half-way."""
        await self._crew.dismiss(_LAST_REPORTS_S)

    async def confirm(self, start: StartRun) -> float | None:
        """Ask whether the run may start, until that is answered; returns when that was asked, None where it may not."""
        question = Confirm(run_id=start.run_id, node=self._node, epoch=start.epoch)
        for delay in delays():
            asked = clock.monotonic()
            try:
                answer = await self._bus.request(SCHEDULER_CONFIRM, question)
            except GurneyError as error:
                if is_final(error):
                    _log.info("start refused", run=start.run_id, reason=error.code)
                    return None
                _log.info("confirmation waits", run=start.run_id, reason=error.code)
            else:
                if not answer.start:
                    _log.info("start refused", run=start.run_id, reason=answer.message)
                return asked if answer.start else None
            await asyncio.sleep(delay)
        raise AssertionError

    async def tell_end(self, run_id: str, outcome: Outcome) -> None:
        """Tell how the run ended, until that is answered."""
        question = RunEnded(run_id=run_id, node=self._node, outcome=outcome)
        for delay in delays():
            try:
                await self._bus.request(SCHEDULER_ENDED, question)
            except GurneyError as error:
                if is_final(error):
                    _log.warning("end refused", run=run_id, reason=error.code)
                    return
                _log.info("end waits to be told", run=run_id, reason=error.code)
            else:
                return
            await asyncio.sleep(delay)

    async def inspected(self, report: InspectReport) -> None:
        """Report what was read of a MAP; returns when JetStream has it."""
        subject = INSPECT_REPORT.of(node_id=self._node, phase=report.phase, inspection_id=report.id)
        await self._publish(subject, report)

    async def beat(self, heartbeat: Heartbeat, claim: Claim) -> None:
        """Show that the node is there; returns when JetStream has it."""
        await claim.put(_event(HEARTBEAT.of(node_id=self._node), heartbeat))

    def phases(self, run_id: str) -> "Phases":
        return Phases(self, run_id)

    def tell_phase(self, run_id: str, phase: Phase, counts: "Counts | None") -> None:
        """Report a phase; nobody waits for it, and one that is lost is made up for by the end."""
        done, total = (counts.done, counts.total) if counts else (None, None)
        report = RunReport(run_id=run_id, node=self._node, phase=phase, at=clock.now(), done=done, total=total)
        subject = RUN_REPORT.of(node_id=self._node, phase=phase, run_id=run_id)
        self._crew.start(self._try_to_publish(subject, report), f"{phase} {run_id}")

    async def _try_to_publish(self, subject: str, report: RunReport) -> None:
        try:
            await self._publish(subject, report)
        except GurneyError as error:
            _log.info("report lost", run=report.run_id, phase=report.phase, error=error)

    async def _publish(self, subject: str, message: Message) -> None:
        await self._bus.publish_events([_event(subject, message)])


def _event(subject: str, message: Message) -> Event:
    return event_of(
        subject,
        message,
        id=ids.new_id("evt"),
        source="agent",
        at=clock.now(),
        traceparent=telemetry.traceparent(),
    )


class Counts:
    """How much of a phase is done; `total` is None while nobody knows."""

    def __init__(self) -> None:
        self.done = 0
        self.total: int | None = None


class Phases:
    """Reports the phases of one run that last, and their counts at most every two seconds."""

    def __init__(self, effects: Effects, run_id: str) -> None:
        self._effects = effects
        self._run_id = run_id
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, phase: Phase) -> Counts:
        """Begin a phase, and end the one before."""
        self.end()
        counts = Counts()
        self._later(WORTH_TELLING_S[phase], phase, counts, None)
        return counts

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _later(self, seconds: float, phase: Phase, counts: Counts, told: tuple[int, int | None] | None) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._tell, phase, counts, told)

    def _tell(self, phase: Phase, counts: Counts, told: tuple[int, int | None] | None) -> None:
        now = (counts.done, counts.total)
        if now != told:
            self._effects.tell_phase(self._run_id, phase, counts if counts.total is not None or counts.done else None)
        if phase != "running":
            self._later(COUNTS_S, phase, counts, now)
