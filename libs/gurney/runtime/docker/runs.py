"""All runs of one house: who lives, who ended, what is heard of them, and taking stock of what the daemon has."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from gurney import telemetry
from gurney.errors import GurneyError
from gurney.runtime.docker import ending
from gurney.runtime.docker.daemon import Refused
from gurney.runtime.docker.host import Host
from gurney.runtime.docker.leases import Leases
from gurney.runtime.docker.live import LiveRun
from gurney.runtime.docker.pause import LABEL as PAUSE_LABEL
from gurney.runtime.docker.pause import Pauses
from gurney.runtime.docker.reading import Readers
from gurney.runtime.docker.removals import Removals
from gurney.runtime.docker.watch import Event
from gurney.runtime.ends import Ends
from gurney.runtime.port import End, Observed

RUN_LABEL = "gurney.run"
_EXIT_CODE = "exitCode"
#: How long a start may still be on its way to the container when we did not see how it went.
_ON_ITS_WAY_S = 5.0

_log = telemetry.log("agent")


class Runs:
    """What is known. Runs come in by `enlist` or `has_ended`, and go by `forget`."""

    def __init__(self, host: Host, pauses: Pauses, leases: Leases, readers: Readers) -> None:
        self.live: dict[str, LiveRun] = {}
        self.ended: dict[str, End] = {}
        #: Starts that are under way.
        self.starting: dict[str, asyncio.Task[None]] = {}
        self.ends = Ends()
        self.removals = Removals(host.daemon)
        self._host = host
        self._pauses = pauses
        self._leases = leases
        self._readers = readers
        self._tasks: set[asyncio.Task[None]] = set()

    def recall(self, leases: Mapping[str, float], kept: Mapping[str, Any]) -> None:
        """Take in what the files tell."""
        for run_id, each in kept.items():
            if each.end is not None:
                self.ended[run_id] = each.end
            elif each.mark is not None:
                run = LiveRun(self._host, run_id, each.mark, each.ending)
                run.lease_until = leases.get(run_id)
                self.enlist(run)

    def enlist(self, run: LiveRun) -> None:
        """Take in a run that is marked."""
        self.live[run.run_id] = run

    def enforce(self, run: LiveRun) -> None:
        """See that it ends when it has to. One that we adopt has to be seen to run first: it may have ended."""
        if run.task is None:
            run.task = asyncio.create_task(run.enforce())

    async def close(self) -> None:
        """End our tasks; the runs go on."""
        live = [run.task for run in self.live.values() if run.task is not None]
        tasks = [*self._tasks, *live, *self.starting.values(), *self.removals.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.ends.close()

    def task(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Start a task that ends with us."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- ends ---

    async def has_ended(self, run_id: str, end: End) -> None:
        """Keep an end and tell it."""
        await self._host.daemon.aside(lambda: self._host.records.keep_end(run_id, end))
        self.live.pop(run_id, None)
        self.ended[run_id] = end
        self.ends.tell(Observed(run_id, end))
        await self._leases.take(run_id)

    async def told(self, run: LiveRun, end: End) -> None:
        """Keep and tell the end of a run that lived."""
        if run.task is not None:
            run.task.cancel()
        await self._pauses.give(run.mark.project, run.mark.network)
        await self.has_ended(run.run_id, end)

    def _finish(self, run: LiveRun, exit_code: int | None = None, nanoseconds: int | None = None) -> None:
        if run.finishing is None:
            run.finishing = self.task(self._find_end(run, exit_code, nanoseconds))

    async def _find_end(self, run: LiveRun, exit_code: int | None, nanoseconds: int | None) -> None:
        try:
            end = await run.end(exit_code, nanoseconds)
        except GurneyError as error:  # found again when the daemon is back
            _log.info("an end waits for the daemon", run=run.run_id, error=error)
            run.finishing = None
        else:
            await self.told(run, end)

    # --- what is heard ---

    def hear(self, event: Event) -> None:
        """Take in an event of a container of ours; some come twice."""
        container, labels = event["Actor"]["ID"], event["Actor"]["Attributes"]
        if labels.get(PAUSE_LABEL):
            if event["Action"] == "die":
                self._pauses.gone(container)
            return
        run_id = labels.get(RUN_LABEL, "")
        run = self.live.get(run_id)
        if run is not None and run.mark.container == container:
            self._hear_of(run, event)
        elif run_id in self.starting:  # it is faster than the answer to its start
            self.starting[run_id].add_done_callback(lambda _: self._hear_late(run_id, event))

    def _hear_late(self, run_id: str, event: Event) -> None:
        if run_id in self.live:
            self.hear(event)

    def _hear_of(self, run: LiveRun, event: Event) -> None:
        told = event["Actor"]["Attributes"].get(_EXIT_CODE, "")
        match event["Action"]:
            case "start":
                # With a label of that name, which the daemon lays over what it tells, it has to be asked.
                if not told:
                    run.heard_start(event["timeNano"])
            case "oom":
                run.heard_oom()
            case "kill":
                run.heard_signal()
            case "die":
                self._finish(run, int(told) if told.isdecimal() else -1, event["timeNano"])

    # --- taking stock ---

    async def take_stock(self) -> None:
        """Hold what the daemon has against what we know; what nobody knows goes."""
        for run in self.live.values():
            run.was_cut_off()
        filters = {"label": [self._host.house.filter]}
        found = await self._host.daemon.quick(lambda client: client.containers(all=True, filters=filters))
        runs = {each["Labels"][RUN_LABEL]: each for each in found if each["Labels"].get(RUN_LABEL)}
        pauses = [each for each in found if each["Labels"].get(PAUSE_LABEL)]
        useless = await self._pauses.settle(pauses, {run.mark.network for run in self.live.values()})
        for run in list(self.live.values()):
            await self._look_at(run, runs.get(run.run_id))
        for each in [*useless, *self._orphans(found)]:
            self.removals.remove(each)
        self.task(self._clear_readings())

    def _orphans(self, found: Sequence[Mapping[str, Any]]) -> list[str]:
        known = {*self.live, *self.ended, *self.starting}
        return [
            each["Id"] for each in found if each["Labels"].get(RUN_LABEL) and each["Labels"][RUN_LABEL] not in known
        ]

    async def _clear_readings(self) -> None:
        with suppress(GurneyError):  # the daemon is away: stock is taken again when it is back
            await self._host.daemon.slow(self._readers.clear)

    async def _look_at(self, run: LiveRun, summary: Mapping[str, Any] | None) -> None:
        if summary is None or summary["Id"] != run.mark.container or summary["State"] in {"exited", "dead"}:
            self._finish(run)
        elif summary["State"] == "created":
            self.task(self.look_later(run))
        else:
            await self._adopt(run)

    async def _adopt(self, run: LiveRun) -> None:
        try:
            await run.adopt()
        except Refused as error:  # it has ended meanwhile, which is told
            _log.info("a run cannot be followed", run=run.run_id, error=error)
        else:
            self.enforce(run)

    async def look_later(self, run: LiveRun) -> None:
        """A start was marked, and its container did not run: perhaps not yet. If it never does, it never will."""
        await asyncio.sleep(_ON_ITS_WAY_S)
        container, daemon = run.mark.container, self._host.daemon
        with suppress(GurneyError):
            state = await daemon.quick(lambda client: client.inspect_container(container)["State"])
            if state["Running"]:
                await self._adopt(run)
            elif state["Status"] == "created":
                # Without force: this one refuses what runs after all. What is removed cannot start any more.
                await daemon.slow(lambda client: client.remove_container(container, v=True))
                await self.told(run, ending.lost("the start was cut off"))
            else:
                self._finish(run)
