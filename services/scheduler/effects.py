"""What the scheduler tells: events that go with a write, and messages that may be lost and go without one."""

from collections.abc import Sequence
from typing import Literal

from gurney import clock, ids, runtoken, telemetry
from gurney.bus import Bus
from gurney.errors import Invalid, NatsUnavailable
from gurney.model.base import Message, Reason
from gurney.model.event import Event, event_of
from gurney.model.job import Phase
from gurney.model.map import InspectMap
from gurney.model.run import Lifecycle, Node, NodeEvent, Placement, RunReport, StartRun, StopRun
from gurney.settings import Settings
from gurney.subjects import LIFECYCLE, NODE_EVENT, RUN_INSPECT, RUN_START, RUN_STOP
from services.scheduler import lifecycle
from services.scheduler.order import Entry

NodeEvents = Literal["joined", "drained", "resumed", "lost", "left"]

_log = telemetry.log("scheduler")


class Effects:
    """Makes events; `publish` and `offer` send those that no document carries."""

    def __init__(self, bus: Bus, settings: Settings) -> None:
        self._bus = bus
        self._secret = settings.run_secret.get_secret_value()

    def check(self) -> None:
        """Raise `Invalid` where a setting is missing without which nothing can be placed."""
        if not self._secret:
            raise Invalid("GURNEY_RUN_SECRET is not set: scheduler and payload service share it")

    # --- with a write ---

    def news(self, before: Placement | None, after: Placement, traceparent: str | None = None) -> list[Event]:
        """Return the lifecycle events that a change of a placement stands for."""
        trace = traceparent or telemetry.caused(after.traceparent)
        return [self._lifecycle(message, trace) for message in lifecycle.news(before, after)]

    def start(self, placement: Placement, traceparent: str | None = None, *, again: bool = False) -> Event:
        """Return the command to start; `again` gives it an id of its own, which no de-duplication drops."""
        if placement.node is None or placement.request is None:
            raise ValueError(f"{placement.id} was never placed")
        content = placement.request.content
        data = StartRun(
            run_id=placement.id,
            job_id=placement.job_id,
            attempt=placement.attempt,
            node=placement.node,
            epoch=placement.epoch,
            gpus=placement.gpus,
            gpu_share=placement.gpu_share,
            request=placement.request,
            project=placement.project,
            token=runtoken.mint(self._secret, placement.id, placement.request.payload),
            content_token=runtoken.mint(self._secret, placement.id, content.payload) if content else "",
        )
        subject = RUN_START.of(node_id=placement.node, run_id=placement.id)
        trace = traceparent or telemetry.caused(placement.traceparent)
        return _event(subject, data, _command_id(placement, "start", again=again), trace)

    def stop(self, placement: Placement, *, again: bool = False) -> Event:
        """Return the command to stop."""
        if placement.node is None:
            raise ValueError(f"{placement.id} was never placed")
        data = StopRun(run_id=placement.id, node=placement.node, epoch=placement.epoch, reason="canceled")
        subject = RUN_STOP.of(node_id=placement.node, run_id=placement.id)
        trace = telemetry.caused(placement.traceparent)
        return _event(subject, data, _command_id(placement, "stop", again=again), trace)

    def fence(self, run_id: str, node: str, epoch: int) -> Event:
        """Return the command to end a run that is over, whatever it still does."""
        data = StopRun(run_id=run_id, node=node, epoch=epoch, reason="fenced")
        return _event(RUN_STOP.of(node_id=node, run_id=run_id), data, ids.new_id("evt"))

    def node(self, event: NodeEvents, node: Node) -> Event:
        data = NodeEvent(id=node.id, state=node.state, at=clock.now())
        return _event(NODE_EVENT.of(event=event, node_id=node.id), data, ids.new_id("evt"))

    # --- without ---

    def inspect(self, question: InspectMap, node: str) -> Event:
        return _event(RUN_INSPECT.of(node_id=node, inspection_id=question.id), question, question.id)

    def waiting(self, entry: Entry, reason: Reason) -> Event:
        request = entry.request
        message = Lifecycle(
            event="waiting",
            event_id=ids.new_id("evt"),
            job_id=request.job_id,
            attempt=request.attempt,
            revision=0,
            at=clock.now(),
            reason=reason,
        )
        return self._lifecycle(message, entry.traceparent)

    def progress(self, placement: Placement, report: RunReport) -> Event:
        message = Lifecycle(
            event="progress",
            event_id=ids.new_id("evt"),
            job_id=placement.job_id,
            attempt=placement.attempt,
            revision=0,
            at=clock.now(),
            node=placement.node,
            phase=Phase(name=report.phase, done=report.done, total=report.total),
        )
        return self._lifecycle(message, telemetry.caused(placement.traceparent))

    async def publish(self, event: Event) -> None:
        """Send, and return when JetStream has it; raises `NatsUnavailable`."""
        await self._bus.publish_events([event])

    async def offer(self, events: Sequence[Event]) -> None:
        """Send what comes again or is not missed."""
        try:
            await self._bus.publish_events(events)
        except NatsUnavailable as error:
            _log.info("not sent", events=len(events), error=error)

    def _lifecycle(self, message: Lifecycle, traceparent: str | None = None) -> Event:
        subject = LIFECYCLE.of(event=message.event, job_id=message.job_id)
        return event_of(
            subject,
            message,
            id=message.event_id,
            source="scheduler",
            at=message.at,
            traceparent=traceparent or telemetry.traceparent(),
        )


def _command_id(placement: Placement, command: str, *, again: bool) -> str:
    if again:
        return ids.new_id("evt")
    return ids.job_event_id(placement.job_id, placement.attempt, f"{command}-{placement.epoch}")


def _event(subject: str, data: Message, event_id: str, traceparent: str | None = None) -> Event:
    traceparent = traceparent or telemetry.traceparent()
    return event_of(subject, data, id=event_id, source="scheduler", at=clock.now(), traceparent=traceparent)
