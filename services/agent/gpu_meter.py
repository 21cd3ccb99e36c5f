"""Looks at what runs use of their GPUs while they run."""

import asyncio
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from gurney import clock, telemetry
from gurney.errors import GurneyError
from gurney.runtime.port import Runtime
from gurney.settings import MIB
from services.agent.gpu_readings import Reading
from services.agent.gpu_use import NOTHING, Held, Tally, Used, Watch, is_nothing, is_untold, own, used
from services.agent.gpus import MEASURING_S, Gpus

#: Seconds for which a run is to hold no memory of its GPUs before it counts as one that does not use them.
IDLE_S = 3.0

_log = telemetry.log("gpus")


@dataclass(slots=True)
class _Measured:
    gpus: tuple[str, ...]
    runtime: Runtime
    #: Of its one GPU, which it shares; None: its GPUs are its own.
    watch: Watch | None
    #: Set to the bytes that it held when it was found to take too much.
    excess: "asyncio.Future[int]"
    tally: Tally = field(default_factory=Tally)
    #: At the last look.
    now: Used = NOTHING


class Meter:
    """That of one host. A run that is shorter than the time between two looks may never be seen."""

    def __init__(self, gpus: Gpus) -> None:
        self._gpus = gpus
        self._runs: dict[str, _Measured] = {}
        self._seen_at: float | None = None
        #: GPUs with memory in use of which nobody can say whose it is.
        self._untold: set[str] = set()

    def begin(self, run_id: str, gpus: tuple[str, ...], runtime: Runtime, share: int = 0) -> None:
        """Measure a run from now on; one without GPUs, or with GPUs on paper, has nothing to be measured.

        `share`: MiB of its one GPU, which it shares; 0: its GPUs are its own.
        """
        if gpus and not self._gpus.simulated:
            watch = Watch(share * MIB) if share else None
            self._runs[run_id] = _Measured(gpus, runtime, watch, asyncio.get_running_loop().create_future())
            self._gpus.measure(on=True)

    async def excess(self, run_id: str) -> int:
        """Return when a run has taken more than its share of a GPU for too long, with the bytes that it held.

        Of a run that shares none, or whose use cannot be told, never.
        """
        return await (self._runs[run_id].excess if run_id in self._runs else asyncio.Future())

    async def idle(self, run_id: str) -> None:
        """Return when a run has computed on none of its GPUs for a while; where that cannot be told, never."""
        since: float | None = None
        while since is None or clock.monotonic() - since < IDLE_S:
            await asyncio.sleep(MEASURING_S)
            measured = self._runs.get(run_id)
            is_idle = measured is not None and is_nothing(measured.now)
            since = (since or clock.monotonic()) if is_idle else None

    @property
    def faults(self) -> tuple[str, ...]:
        """What keeps shares of GPUs from being watched."""
        shared = {uuid for measured in self._runs.values() if measured.watch for uuid in measured.gpus}
        return tuple(
            f"memory is in use on {uuid} of which nobody can say whose it is: nobody is stopped for it"
            for uuid in sorted(shared & self._untold)
        )

    def so_far(self, run_id: str) -> Used:
        """Return what the run has used up to now."""
        return self._runs[run_id].tally.total() if run_id in self._runs else NOTHING

    def end(self, run_id: str) -> Used:
        """Return what the run has used in all, and measure it no more."""
        total = self.so_far(run_id)
        self._runs.pop(run_id, None)
        self._gpus.measure(on=bool(self._runs))
        return total

    async def run(self) -> None:
        """Measure for ever."""
        while True:
            await asyncio.sleep(MEASURING_S)
            if self._runs and (reading := self._gpus.reading) is not None and reading.at != self._seen_at:
                self._seen_at = reading.at
                await self.look(reading)

    async def look(self, reading: Reading) -> None:
        """Take in what was seen."""
        devices, runs = {device.gpu.uuid: device for device in reading.devices}, dict(self._runs)
        holders = Counter(uuid for measured in runs.values() for uuid in measured.gpus)
        pids = {pid for uuid in holders if uuid in devices for pid in devices[uuid].processes}
        pids_of = await self._pids({measured.runtime for measured in runs.values()}, pids)
        known: defaultdict[str, list[int | None]] = defaultdict(list)
        for run_id, measured in runs.items():
            if not all(uuid in devices for uuid in measured.gpus):
                _judge(measured, None, reading.at)
                measured.now = NOTHING
                continue  # one is lost: what the others tell is not what the run uses
            held = [Held(devices[uuid], self._gpus.others(uuid), holders[uuid] == 1) for uuid in measured.gpus]
            measured.now = used(held, pids_of[run_id])
            measured.tally.add(measured.now)
            for uuid in measured.gpus:
                known[uuid].append(own(devices[uuid], pids_of[run_id]))
            _judge(measured, known[measured.gpus[0]][-1], reading.at)
        self._untold = {uuid for uuid in known if is_untold(devices[uuid], self._gpus.others(uuid), known[uuid])}

    async def _pids(self, runtimes: set[Runtime], pids: set[int]) -> defaultdict[str, set[int]]:
        """Return which of these processes each run has; where a runtime does not say, nothing is known of its runs."""
        found: defaultdict[str, set[int]] = defaultdict(set)
        for runtime in runtimes if pids else ():
            try:
                for pid, run_id in (await runtime.owners(pids)).items():
                    found[run_id].add(pid)
            except GurneyError as error:
                _log.debug("processes cannot be told apart", error=error)
        return found


def _judge(measured: _Measured, memory: int | None, at: float) -> None:
    """Note when a run has taken too much for too long; `memory`: what is known to be its own."""
    too_much = measured.watch is not None and measured.watch.saw(memory, at)
    if too_much and memory is not None and not measured.excess.done():
        measured.excess.set_result(memory)
