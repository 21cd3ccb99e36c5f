"""All runs of this host: takes them on, finds them again after a restart, tells them their ends, clears up."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Self

from gurney import clock, telemetry
from gurney.errors import Conflict, GurneyError
from gurney.model.resources import Amount
from gurney.model.run import StartRun
from gurney.runtime.folder import remove_tree
from gurney.runtime.port import End, Observed, Runtime
from services.agent import inventory, machine, policy
from services.agent.folders import Work
from services.agent.host import Host
from services.agent.journal import Entry
from services.agent.machine import Seen, Step
from services.agent.patience import Crew, delays
from services.agent.run import Run

#: Seconds that the clearing-up gets when the agent ends; the next start finds what is left.
_GRACE_S = 2.0

_log = telemetry.log("agent")


class Supervisor:
    """A context: inside, runs live. Leaving it, they go on without us."""

    def __init__(self, host: Host, runtimes: Sequence[Runtime]) -> None:
        self._host = host
        self._runtimes = tuple(runtimes)
        self._runs: dict[str, Run] = {}
        self._ends: dict[str, asyncio.Future[End]] = {}
        self._living = Crew()
        self._clearing = Crew()
        self._stack = AsyncExitStack()
        self.capacity = Amount()
        #: Another agent has our node id: what is sent to the node is for it to take.
        self.is_refused = False

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(kind for runtime in self._runtimes for kind in runtime.kinds)

    @property
    def faults(self) -> tuple[str, ...]:
        """What keeps runtimes from beginning runs: those that are asked to wait until it is over."""
        return tuple(runtime.fault for runtime in self._runtimes if runtime.fault is not None)

    @property
    def run_ids(self) -> tuple[str, ...]:
        return tuple(self._runs)

    @property
    def digests(self) -> set[str]:
        """What the runs have in hand: their MAPs, and what these bring along."""
        requests = [run.entry.start.request for run in self._runs.values()]
        return {each.digest for each in requests} | {each.content.digest for each in requests if each.content}

    @property
    def held_gpus(self) -> frozenset[str]:
        """UUIDs of the GPUs that live runs have."""
        return frozenset(gpu for run in self._holding_room for gpu in run.entry.start.gpus)

    @property
    def _holding_room(self) -> list[Run]:
        return [run for run in self._runs.values() if run.step in machine.HOLDS_ROOM]

    def runtime_for(self, urn: str) -> Runtime | None:
        """Return who runs the URN here."""
        kind = policy.kind_of(urn, self.kinds)
        return next((runtime for runtime in self._runtimes if kind in runtime.kinds), None)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for runtime in self._runtimes:
                await runtime.open()
                stack.push_async_callback(runtime.close)
            self.capacity = await asyncio.to_thread(inventory.measure, self._host.settings)
            stack.push_async_callback(self._clearing.dismiss, _GRACE_S)
            stack.push_async_callback(self._living.dismiss)
            await self._resume()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    # --- what is asked for ---

    async def start(self, start: StartRun) -> None:
        """Take a run on; once it is in the journal it is ours, whatever happens. What we have already is left alone."""
        if start.run_id in self._runs:
            return
        if self.is_refused:
            raise Conflict("another agent has the id of this node")
        if not await self._is_current(start.epoch, start.run_id):
            return
        live = [run.entry.start for run in self._holding_room]
        if not policy.fits(self.capacity, self._host.gpus.memory, live, start):
            _log.warning("start refused: it does not fit beside the live runs", run=start.run_id)
            return
        entry = Entry(start=start, traceparent=telemetry.traceparent(), accepted_at=clock.now())
        await asyncio.to_thread(self._accept, entry)
        self._launch(entry, Step.CONFIRMING, None, anew=True)

    async def stop(self, run_id: str, epoch: int) -> None:
        """Stop a run; one that we do not know is not here."""
        if await self._is_current(epoch, run_id) and (run := self._runs.get(run_id)):
            await run.stop()

    async def renew(self, run_ids: Sequence[str], sent: float) -> None:
        """Renew the leases of runs that a heartbeat named which JetStream has, counted from when it was sent."""
        until = self._host.leases.renewed(run_ids, sent, clock.monotonic())
        if until is None:
            return
        urns = {run_id: run.entry.start.request.urn for run_id, run in self._runs.items() if run_id in run_ids}
        for runtime in self._runtimes:
            mine = [run_id for run_id, urn in urns.items() if self.runtime_for(urn) is runtime]
            try:
                await runtime.lease(mine, until)
            except GurneyError as error:
                _log.warning("leases cannot be renewed", error=error)

    async def _is_current(self, epoch: int, run_id: str) -> bool:
        """Tell whether a command is of the newest leadership that we know of."""
        if epoch < self._host.journal.epoch:
            _log.warning("command of a former scheduler refused", run=run_id, epoch=epoch)
            return False
        await self._host.journal.raise_epoch(epoch)
        return True

    def _accept(self, entry: Entry) -> None:
        Work(self._host.work, entry.run_id).make()
        self._host.journal.write(entry)

    # --- one run ---

    def _launch(self, entry: Entry, step: Step, end: End | None, *, anew: bool) -> None:
        ends = self._end_of(entry.run_id)
        if end is not None:
            ends.set_result(end)
        runtime = self.runtime_for(entry.start.request.urn)
        run = self._runs[entry.run_id] = Run(self._host, entry, runtime, ends, step, anew=anew)
        self._living.start(self._see_through(run), f"run {run.run_id}")

    async def _see_through(self, run: Run) -> None:
        try:
            await run.live()
        except Exception:
            _log.exception("run failed within the agent", run=run.run_id, step=run.step)
            outcome = policy.lost("internal", "the agent failed", run.entry.timings)
            run.entry = run.entry.but(outcome=run.entry.outcome or outcome)
            await run.end()  # before it is told: the next attempt may begin at once
            run.step = Step.REPORTING
            await run.live()
        # From here on only rubbish is left, which nobody waits for.
        self._clearing.start(self._clear_up(run), f"clear {run.run_id}")

    async def _clear_up(self, run: Run) -> None:
        """Forget the run: the journal first, the runtime last."""
        await run.forget()
        self._runs.pop(run.run_id, None)
        self._ends.pop(run.run_id, None)
        self._host.leases.forget(run.run_id)
        self._host.live_log.drop(run.run_id)
        if runtime := self.runtime_for(run.entry.start.request.urn):
            await self._forget(runtime, run.run_id)

    async def _forget(self, runtime: Runtime, run_id: str) -> None:
        """Have the runtime forget a run; a live one is stopped first."""
        for delay in delays():
            try:
                await runtime.forget(run_id)
            except Conflict:
                await self._end_stray(runtime, run_id)
            except GurneyError as error:
                _log.info("forgetting waits", run=run_id, error=error)
            else:
                return
            await asyncio.sleep(delay)

    async def _end_stray(self, runtime: Runtime, run_id: str) -> None:
        end = self._end_of(run_id)
        await runtime.stop(run_id, self._host.settings.stop_grace)
        await end
        self._ends.pop(run_id, None)

    # --- ends ---

    def _end_of(self, run_id: str) -> "asyncio.Future[End]":
        future = self._ends.get(run_id)
        if future is None:
            future = self._ends[run_id] = asyncio.get_running_loop().create_future()
        return future

    def _note_end(self, observed: Observed) -> None:
        end = self._ends.get(observed.run_id)
        if observed.end is not None and end is not None and not end.done():
            end.set_result(observed.end)

    async def _listen(self, runtime: Runtime, ends: AsyncIterator[Observed]) -> None:
        """Hand each run its end; when the runtime breaks off, see what was missed and listen again."""
        for delay in delays():
            try:
                async for observed in ends:
                    self._note_end(observed)
            except GurneyError as error:
                _log.warning("runtime broke off", error=error)
            except Exception:  # whatever it is: without this no run would end any more
                _log.exception("runtime broke off")
            else:
                return  # it was closed
            await asyncio.sleep(delay)
            ends = runtime.ends()
            await self._look_again(runtime)

    async def _look_again(self, runtime: Runtime) -> None:
        try:
            for observed in await runtime.runs():
                self._note_end(observed)
        except GurneyError as error:
            _log.info("runtime does not answer", error=error)

    # --- after a restart ---

    async def _resume(self) -> None:
        """Find every run again, and go on where it was."""
        entries = {entry.run_id: entry for entry in await asyncio.to_thread(self._open_folders)}
        observed: dict[str, tuple[Runtime, Observed]] = {}
        for runtime in self._runtimes:
            ends = runtime.ends()  # before we look, so that no end falls between
            self._living.start(self._listen(runtime, ends), "ends")
            observed |= {each.run_id: (runtime, each) for each in await runtime.runs()}
        for run_id, entry in entries.items():
            self._resume_one(entry, observed[run_id][1] if run_id in observed else None)
        for run_id, (runtime, each) in observed.items():
            if run_id not in entries:
                self._clearing.start(self._forget(runtime, each.run_id), f"stray {run_id}")

    def _open_folders(self) -> list[Entry]:
        """Return the journal's entries; work of runs that it does not know goes."""
        entries = self._host.journal.open()
        self._host.work.mkdir(parents=True, exist_ok=True)
        known = {entry.run_id for entry in entries}
        for folder in self._host.work.iterdir():
            if folder.name not in known:
                remove_tree(folder)
        self._host.contents.open()
        return entries

    def _resume_one(self, entry: Entry, observed: Observed | None) -> None:
        step = machine.RESUME[entry.kept, _seen(observed)]
        _log.info("run found again", run=entry.run_id, step=step)
        self._launch(entry, step, observed.end if observed else None, anew=False)


def _seen(observed: Observed | None) -> Seen:
    if observed is None:
        return Seen.ABSENT
    return Seen.LIVE if observed.end is None else Seen.ENDED
