"""Reads MAPs for their registration: digest and manifests, running none of their code."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping

from gurney import telemetry
from gurney.errors import GurneyError, MapUnreadable
from gurney.model.base import Reason
from gurney.model.map import InspectMap, InspectReport
from gurney.runtime.port import Inspection, Runtime
from services.agent.effects import Effects

MANIFEST_LIMIT = 128 * 1024
#: Inspections at once: each reads a whole MAP.
_AT_ONCE = 2
#: How many answers are remembered for a question that comes twice, because the first took long.
_REMEMBERED = 64

_log = telemetry.log("agent")


class Inspector:
    """Answers `inspect` commands by reports."""

    def __init__(self, node: str, effects: Effects, runtime_for: Callable[[str], Runtime | None]) -> None:
        self._node = node
        self._effects = effects
        self._runtime_for = runtime_for
        self._lanes = asyncio.Semaphore(_AT_ONCE)
        self._answered: OrderedDict[str, None] = OrderedDict()

    async def inspect(self, asked: InspectMap) -> None:
        """Read the MAP and report; returns when the report is safe."""
        if asked.id in self._answered:
            return
        async with self._lanes:
            report = await self._report(asked)
        await self._effects.inspected(report)
        self._answered[asked.id] = None
        if len(self._answered) > _REMEMBERED:
            self._answered.popitem(last=False)

    async def _report(self, asked: InspectMap) -> InspectReport:
        report = InspectReport(id=asked.id, map_id=asked.map_id, node=self._node, phase="failed")
        try:
            found = await self._read(asked.urn)
            manifests = _texts(found.manifests)
        except MapUnreadable as error:
            return report.but(reason=Reason.of(error.reason, str(error)))
        except GurneyError as error:
            if error.retryable:
                raise  # the question comes again
            return report.but(reason=Reason.of(error.code, str(error)))
        return report.but(phase="done", digest=found.digest, manifests=manifests)

    async def _read(self, urn: str) -> Inspection:
        runtime = self._runtime_for(urn)
        if runtime is None:
            raise MapUnreadable("no_runtime", f"no runtime of this node runs {urn}")
        return await runtime.inspect(urn)


def _texts(manifests: Mapping[str, bytes]) -> dict[str, str]:
    size = sum(map(len, manifests.values()))
    if size > MANIFEST_LIMIT:
        raise MapUnreadable("manifest_too_large", f"The manifests have {size} bytes, {MANIFEST_LIMIT} are allowed")
    return {path: raw.decode("utf-8-sig", errors="replace") for path, raw in manifests.items()}
