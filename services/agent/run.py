"""The life of one run on this host: one task that goes from step to step, as `machine` says, and does what they ask."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar, assert_never

from gurney import clock, telemetry
from gurney.errors import GurneyError
from gurney.model.job import Usage
from gurney.model.run import Outcome
from gurney.runtime.port import End, Runtime
from gurney.tracing import Span
from services.agent import collecting, machine, policy
from services.agent.folders import Work
from services.agent.host import Host
from services.agent.journal import Entry
from services.agent.machine import Event, Step
from services.agent.output import Limits
from services.agent.patience import GaveUp, delays, persist
from services.agent.preparing import Preparation
from services.agent.spec import spec_of
from services.agent.upload import Uploader

#: Staging that took longer is worth a write, so that a restart does not forget how long it took.
_WORTH_KEEPING_S = 1.0

#: Steps that are spans as such. Of the others, the scheduler's answers, the uploads and what ran tell.
_TRACED = frozenset({Step.STAGING, Step.STARTING})

_log = telemetry.log("run")

T = TypeVar("T")


class Run:
    """One run that this host has taken on. Its entry is in the journal when it is made."""

    def __init__(
        self, host: Host, entry: Entry, runtime: Runtime | None, end: "asyncio.Future[End]", step: Step, *, anew: bool
    ) -> None:
        """`anew`: nothing was done for it yet but its folders. `end` is set when the runtime tells of it."""
        self.entry = entry
        self.step = step
        self.work = Work(host.work, entry.run_id)
        self._host = host
        self._runtime = runtime
        self._end = end
        self._anew = anew
        self._told_runtime = step is Step.RUNNING
        self._task: asyncio.Task[Any] | None = None
        self._is_broken_off = False
        #: When the application began, or we took it on again, by the monotonic clock.
        self._since = clock.monotonic()
        self._writing = asyncio.Lock()
        self._is_forgotten = False
        self._phases = host.effects.phases(entry.run_id)
        self._preparation: Preparation | None = None
        self._traceparent: str | None = None

    @property
    def run_id(self) -> str:
        return self.entry.run_id

    # --- the way ---

    async def live(self) -> None:
        """Go from step to step until the scheduler knows how the run ended."""
        self._task = asyncio.current_task()
        with self._span() as span:
            self._traceparent = span.traceparent
            try:
                while self.step is not Step.DONE:
                    self.step = machine.after(self.step, await self._event())
                self._tell_outcome(span)
            except BaseException:
                span.drop()  # who takes the run up again goes on with it
                raise
            finally:
                self._phases.end()
                self._discard_preparation()

    def _span(self) -> Span:
        """Return the run's span: the same one in every life of the agent, so that all below it find it in the end."""
        start = self.entry.start
        return telemetry.span(
            "run",
            telemetry.INTERNAL,
            self.entry.traceparent,
            service="agent",
            about=self.run_id,
            attributes={"gurney.node": start.node, "gurney.attempt": start.attempt},
            key=self.run_id,
            since=self.entry.accepted_at,
        )

    def _step_span(self, step: Step, since: datetime | None = None) -> Span:
        quiet = since is None and step not in _TRACED
        return telemetry.span(step.value, telemetry.INTERNAL, key=f"{self.run_id}/{step}", since=since, quiet=quiet)

    def _tell_outcome(self, span: Span) -> None:
        outcome = self.entry.outcome
        if outcome is None:
            return
        span.note("gurney.ending", outcome.ending)
        if outcome.exit_code is not None:
            span.note("process.exit.code", outcome.exit_code)
        if outcome.reason is not None:
            span.fail(outcome.reason.code, fault=outcome.ending in {"failed", "lost"})

    def _discard_preparation(self) -> None:
        if self._preparation is not None:
            self._preparation.discard()

    async def _event(self) -> Event:
        """Do the step; what a stop breaks off is `STOPPED`."""
        step = self.step
        if self.entry.stopped and step in machine.BEFORE_START:
            self._take_back_break()
            return await self._stopped()
        try:
            with self._step_span(step) as span:
                try:
                    return await self._do(step)
                except asyncio.CancelledError:
                    if not self._is_broken_off:
                        span.drop()  # as the run's own
                    raise
        except asyncio.CancelledError:
            if not self._is_broken_off:
                raise
            self._take_back_break()
            return await self._stopped()

    def _break_off(self) -> None:
        if self._task is not None and not self._is_broken_off:
            self._is_broken_off = True
            self._task.cancel()

    def _take_back_break(self) -> None:
        """Take back the cancellation by which a stop broke a step off; one that is left is the end of the agent."""
        if self._is_broken_off and self._task is not None and self._task.uncancel():
            raise asyncio.CancelledError
        self._is_broken_off = False

    async def _do(self, step: Step) -> Event:
        match step:
            case Step.CONFIRMING:
                return await self._confirm()
            case Step.STAGING:
                return await self._stage()
            case Step.STARTING:
                return await self._start()
            case Step.RUNNING:
                return await self._await_end()
            case Step.COLLECTING:
                return await self._collect()
            case Step.REPORTING:
                return await self._report()
            case Step.DONE:
                raise ValueError("a run that is done has nothing to do")
            case _:
                assert_never(step)

    async def stop(self) -> None:
        """Keep the run from starting, or end it; where it has ended nothing happens."""
        if self.step not in machine.HOLDS_ROOM:
            return
        if self.step in machine.BREAKABLE and not self.entry.stopped:
            self._break_off()  # before anything is waited for: soon it may be the stop's own outcome that is written
        await self._note(stopped=True)
        if self._told_runtime:
            await self._stop_runtime()

    async def end(self) -> None:
        """Stop it, and return when nothing of it runs any more, whatever else goes wrong."""
        if self._runtime is None or not self._told_runtime:
            return
        is_asked = False
        for delay in delays():
            try:
                if not is_asked:
                    await self._stop_runtime()
                is_asked = True
                if all(each.end for each in await self._runtime.runs() if each.run_id == self.run_id):
                    return
            except Exception as error:
                _log.warning("run cannot be ended", run=self.run_id, error=error)
            await asyncio.sleep(delay)

    async def _stop_runtime(self) -> None:
        if self._runtime is not None:
            await self._runtime.stop(self.run_id, self._host.settings.stop_grace)

    async def _note(self, **changes: Any) -> None:
        """Change the entry, at once here and then on disk."""
        self.entry = self.entry.but(**changes)
        await asyncio.shield(self._keep())  # a write that is cut off could come after a later one

    async def _keep(self) -> None:
        """Write the entry as it is when its turn comes; a full disk keeps no run from its end."""
        async with self._writing:
            if self._is_forgotten:
                return
            try:
                await self._host.journal.keep(self.entry)
            except OSError as error:
                _log.warning("journal cannot be written", run=self.run_id, error=error)

    async def forget(self) -> None:
        """Drop the entry and the folders. The entry goes first: a crash then leaves what the next start clears away."""
        async with self._writing:
            self._is_forgotten = True
            await asyncio.to_thread(self._drop)

    def _drop(self) -> None:
        self._host.journal.drop(self.run_id)
        self.work.remove()

    async def _decide(self, outcome: Outcome) -> None:
        await self._note(outcome=outcome)

    async def _stopped(self) -> Event:
        await self._decide(policy.canceled(self.entry.timings))
        return Event.STOPPED

    # --- the steps ---

    async def _confirm(self) -> Event:
        """Ask whether to start; what is needed first is looked for meanwhile."""
        self._discard_preparation()
        self._preparation = Preparation(self._host, self.entry.start, self._runtime, self.work)
        asked = await self._host.effects.confirm(self.entry.start)
        if asked is None:
            return Event.REFUSED
        self._host.leases.confirmed(self.run_id, asked)
        return Event.GRANTED

    async def _stage(self) -> Event:
        began = clock.monotonic()
        if self._preparation is None:
            raise ValueError("a run is confirmed before it is staged")
        self._phases.begin("pulling")
        try:
            await self._preparation.bring_image()
        except GaveUp as error:
            return await self._give_up("image_unavailable", f"the image cannot be had: {error}")
        pulled = clock.monotonic()
        self.entry = self.entry.but(pulling=pulled - began)
        counts = self._phases.begin("staging")
        try:
            await self._preparation.bring_input(counts, anew=self._anew)
            await self._preparation.bring_content()
        except (GaveUp, GurneyError, OSError) as error:
            return await self._give_up("input_unavailable", f"the input cannot be had: {error}")
        self._phases.end()
        self.entry = self.entry.but(staging=clock.monotonic() - pulled)
        return Event.STAGED

    async def _give_up(self, code: str, message: str) -> Event:
        await self._decide(policy.lost(code, message, self.entry.timings))
        return Event.GIVEN_UP

    async def _start(self) -> Event:
        """Have the runtime begin the run, however long it takes: whether it has begun is for the runtime to say."""
        if self._runtime is None:
            raise ValueError("a run without a runtime is never staged")
        start = self.entry.start
        asked, content = start.request.timeout_s, start.request.content
        timeout_s = (self._host.settings.job_timeout if asked is None else asked) or None
        content_dir = self._host.contents.path(content.digest) if content else None
        if unfit := self._host.gpus.unfit(start.gpus):
            await self._decide(policy.without_gpus(unfit, self.entry.timings))
            return Event.GIVEN_UP
        leases = self._host.leases
        self._since = clock.monotonic()
        await self._host.disk.look_again()
        self._follow_log(self._runtime)
        self._told_runtime = True
        for delay in delays():
            if leases.has_lapsed(self.run_id, clock.monotonic()):
                return await self._give_up("node_lost", "the node was cut off for longer than the run's lease")
            try:
                until = leases.until(self.run_id)
                spec = spec_of(
                    start,
                    self.work,
                    timeout_s,
                    self._traceparent,
                    until,
                    content_dir=content_dir,
                    gpu_memory=self._host.gpus.memory,
                    gpus_simulated=self._host.gpus.simulated,
                )
                await self._runtime.start(spec)
                break
            except GurneyError as error:
                if not error.retryable:
                    return await self._give_up("internal", f"the run cannot be begun: {error}")
                _log.warning("start waits", run=self.run_id, error=error)
                self._anew = False
            await asyncio.sleep(delay)
        if not self._anew:
            await self._find_end()
        if self.entry.stopped:
            await self._stop_patiently()
        return Event.BEGUN

    async def _find_end(self) -> None:
        """Take in an end that was before anybody listened: the start may have been told twice."""
        if self._runtime is None or self._end.done():
            return
        for observed in await _until_it_answers(self._runtime.runs):
            if observed.run_id == self.run_id and observed.end is not None and not self._end.done():
                self._end.set_result(observed.end)

    async def _await_end(self) -> Event:
        if self._runtime is None:
            raise ValueError("a run without a runtime never begins")
        if not self._end.done():
            self._phases.begin("running")
            start = self.entry.start
            self._host.meter.begin(self.run_id, start.gpus, self._runtime, start.gpu_share)
            self._follow_log(self._runtime)
            await self._keep_timings()
            if self.entry.stopped or self.entry.excess:
                await self._stop_patiently()
        watching = (self._end_without_gpus, self._end_without_devices, self._end_beyond_share)
        watches = [asyncio.create_task(each()) for each in watching if self.entry.start.gpus]
        try:
            await self._end
        finally:
            for watch in watches:
                watch.cancel()
        return Event.ENDED

    async def _end_without_gpus(self) -> None:
        """End it when one of its GPUs is gone, for which the application might wait for ever."""
        await self._host.gpus.gone(self.entry.start.gpus)
        _log.warning("run is ended for want of its GPUs", run=self.run_id)
        await self._stop_patiently()

    async def _end_without_devices(self) -> None:
        """End it when it may no longer open its GPUs, unless it computes on: what it has opened goes on working."""
        if self._runtime is not None:
            await self._host.probes.refused(self.run_id, self._runtime)
            await self._host.meter.idle(self.run_id)
            _log.warning("run is ended for want of its GPUs", run=self.run_id)
            await self._stop_patiently()

    async def _end_beyond_share(self) -> None:
        """End it when it takes more than its share of a GPU: others have theirs there."""
        excess = policy.told_excess(self.entry.start, await self._host.meter.excess(self.run_id))
        _log.warning("run is ended for the GPU memory that it holds", run=self.run_id, excess=excess)
        await self._note(excess=excess)
        await self._stop_patiently()

    def _follow_log(self, runtime: Runtime) -> None:
        if self.entry.start.request.transient:
            return  # a stream would keep it
        self._host.live_log.follow(self.run_id, runtime.log_path(self.run_id), anew=self._anew)

    async def _keep_timings(self) -> None:
        if (self.entry.pulling or 0) + (self.entry.staging or 0) > _WORTH_KEEPING_S:
            await self._note()

    async def _stop_patiently(self) -> None:
        await _until_it_answers(self._stop_runtime)

    async def _collect(self) -> Event:
        if self._runtime is None:
            raise ValueError("a run without a runtime leaves nothing")
        began = clock.monotonic()
        self._tell_running()
        gpus = self.entry.start.gpus
        self._host.gpus.let_go(gpus)
        outcome = policy.outcome_of(self._end.result(), self.entry.timings, self._host.meter.end(self.run_id))
        was_refused = self._host.probes.end(self.run_id)
        if self.entry.excess and not self.entry.stopped:
            outcome = policy.on_excess(outcome, self.entry.excess)
        elif outcome.ending != "succeeded" and not self.entry.stopped and gpus:
            await self._host.gpus.look_again()
            outcome = policy.on_unfit_gpus(outcome, self._host.gpus.unfit(gpus), was_refused=was_refused)
        counts = self._phases.begin("collecting")
        settings = self._host.settings
        limits = Limits(settings.max_output_files, settings.max_output)
        log_path = self._runtime.log_path(self.run_id)
        try:
            left = await persist(
                lambda: collecting.look(self.work, log_path, limits, self._host.disk, self._since),
                settings.transfer_patience,
            )
        except GaveUp as error:
            return await self._collected(policy.unstored(outcome, str(error)), began)
        if left.log.source is None:
            self._host.live_log.drop(self.run_id)
        else:
            await self._host.live_log.finish(self.run_id)
        start = self.entry.start
        if start.request.transient:
            left = left.without_log()
        uploader = Uploader(self._host.bus, start.token, self._host.lanes, settings.transfer_patience)
        outcome = await collecting.carry(left, outcome, start.attempt, uploader, counts)
        return await self._collected(outcome, began, worth_keeping=not left.is_nothing)

    def _tell_running(self) -> None:
        """Give what ran its span: from its beginning to its end, whether an agent was there to see them or not."""
        end = self._end.result()
        with self._step_span(Step.RUNNING, end.started_at) as span:
            span.until(end.stopped_at)

    async def _collected(self, outcome: Outcome, began: float, *, worth_keeping: bool = True) -> Event:
        self._phases.end()
        _count(outcome)
        timings = outcome.timings.but(collecting=clock.monotonic() - began)
        if worth_keeping:
            await self._decide(outcome.but(timings=timings))
        else:  # after a restart the same nothing would be collected again: no need for a write
            self.entry = self.entry.but(outcome=outcome.but(timings=timings))
        return Event.COLLECTED

    async def _report(self) -> Event:
        if self.entry.outcome is None:
            raise ValueError("a run is reported when its outcome is known")
        transient = self.entry.start.request.transient
        outcome = policy.without_data(self.entry.outcome) if transient else self.entry.outcome
        await self._host.effects.tell_end(self.run_id, outcome)
        return Event.ANSWERED


def _count(outcome: Outcome) -> None:
    """Have what the run used in the metrics."""
    used = outcome.usage or Usage()
    if used.wall_s is not None:
        telemetry.RUN_SECONDS.labels(outcome.ending).observe(used.wall_s)
    if used.peak_memory is not None:
        telemetry.RUN_MEMORY.observe(used.peak_memory)
    if used.gpu_peak_memory is not None:
        telemetry.RUN_GPU_MEMORY.observe(used.gpu_peak_memory)
    if used.gpu_utilization is not None:
        telemetry.RUN_GPU_UTILIZATION.observe(used.gpu_utilization)
    telemetry.RUN_CPU.inc(used.cpu_s or 0)
    telemetry.RUN_BYTES.labels("in").inc(used.bytes_in or 0)
    telemetry.RUN_BYTES.labels("out").inc(used.bytes_out or 0)


async def _until_it_answers(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask the runtime until it answers: it alone knows whether the run is there."""
    for delay in delays():
        try:
            return await ask()
        except GurneyError as error:
            _log.warning("runtime does not answer", error=error)
        await asyncio.sleep(delay)
    raise AssertionError
