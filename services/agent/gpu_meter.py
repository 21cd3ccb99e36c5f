"""Looks at what runs use of their GPUs while they run."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from gurney import telemetry
from gurney.errors import GurneyError
from gurney.runtime.port import Runtime
from services.agent.gpu_use import NOTHING, Held, Tally, Used, used
from services.agent.gpus import MEASURING_S, Gpus

_log = telemetry.log("gpus")


@dataclass(slots=True)
class _Measured:
    gpus: tuple[str, ...]
    runtime: Runtime
    tally: Tally = field(default_factory=Tally)


class Meter:
    """That of one host. A run that is shorter than the time between two looks may never be seen."""

    def __init__(self, gpus: Gpus) -> None:
        self._gpus = gpus
        self._runs: dict[str, _Measured] = {}
        self._seen_at: float | None = None

    def begin(self, run_id: str, gpus: tuple[str, ...], runtime: Runtime) -> None:
        """Measure a run from now on; one without GPUs, or with GPUs on paper, has nothing to be measured."""
        if gpus and not self._gpus.simulated:
            self._runs[run_id] = _Measured(gpus, runtime)
            self._gpus.measure(on=True)

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
            if self._runs and self._gpus.seen_at != self._seen_at:
                self._seen_at = self._gpus.seen_at
                await self.look()

    async def look(self) -> None:
        """Take in what was seen last."""
        devices, runs = self._gpus.devices, dict(self._runs)
        holders = Counter(uuid for measured in runs.values() for uuid in measured.gpus)
        pids = {pid for uuid in holders if uuid in devices for pid in devices[uuid].processes}
        owners = await self._owners({measured.runtime for measured in runs.values()}, pids)
        for run_id, measured in runs.items():
            if not all(uuid in devices for uuid in measured.gpus):
                continue  # one is lost: what the others tell is not what the run uses
            held = [Held(devices[uuid], self._gpus.others(uuid), holders[uuid] == 1) for uuid in measured.gpus]
            measured.tally.add(used(held, {pid for pid, owner in owners.items() if owner == run_id}))

    async def _owners(self, runtimes: set[Runtime], pids: set[int]) -> dict[int, str]:
        """Return to which run each process belongs; where a runtime does not say, nothing is known of its runs."""
        found: dict[int, str] = {}
        for runtime in runtimes if pids else ():
            try:
                found |= await runtime.owners(pids)
            except GurneyError as error:
                _log.debug("processes cannot be told apart", error=error)
        return found
