"""Looks whether runs may still open the devices of their GPUs.

A container can lose that while it runs: a reload of the host's service manager sets the rules of its control group
anew, without what NVIDIA's toolkit has added. The GPU is well, and a new container gets it.
"""

import asyncio

from gurney import telemetry
from gurney.errors import GurneyError
from gurney.runtime.port import Runtime

#: Seconds after which a refusal is looked at again: rules may be half made.
AGAIN_S = 1.0

_log = telemetry.log("gpus")


class Probes:
    """Those of one host. `every`: seconds between two looks at a run; 0: nobody looks."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._refused: set[str] = set()
        self._untold: set[str] = set()

    async def refused(self, run_id: str, runtime: Runtime) -> None:
        """Return when a run may no longer open one of its devices; where that cannot be told, never."""
        try:
            while self._every:
                await asyncio.sleep(self._every)
                if await self._is_refused(run_id, runtime):
                    await asyncio.sleep(AGAIN_S)
                    if await self._is_refused(run_id, runtime):
                        self._refused.add(run_id)
                        _log.warning("run may not open its GPUs any more", run=run_id)
                        break
            else:
                await asyncio.Future()
        finally:
            self._untold.discard(run_id)

    async def _is_refused(self, run_id: str, runtime: Runtime) -> bool:
        try:
            told = await runtime.may_open_gpus(run_id)
        except GurneyError as error:
            _log.debug("nobody can look whether a run has its GPUs", run=run_id, error=error)
            told = None
        (self._untold.add if told is None else self._untold.discard)(run_id)
        return told is False

    def end(self, run_id: str) -> bool:
        """Tell whether a run that has ended might not open its devices any more, and forget it."""
        was_refused = run_id in self._refused
        self._refused.discard(run_id)
        return was_refused

    @property
    def faults(self) -> tuple[str, ...]:
        """Of which runs nothing can be told."""
        return tuple(
            f"nobody can look whether {run_id} still has its GPUs: no shell in its image, or not enough memory left"
            for run_id in sorted(self._untold)
        )
