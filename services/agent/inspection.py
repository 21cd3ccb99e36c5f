"""Reads MAPs for their registration: digest and manifests, running none of their code."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Mapping

from pydantic_core import to_json

from gurney import telemetry
from gurney.errors import GurneyError, MapUnreadable
from gurney.model.base import Reason
from gurney.model.map import InspectMap, InspectReport, Progress
from gurney.runtime.port import Inspection, Runtime
from services.agent.effects import Effects
from services.agent.holdings import Holdings

MANIFEST_LIMIT = 128 * 1024
#: Of an image's own command, in bytes of JSON: as a registrant may give one.
COMMAND_LIMIT = 64 * 1024
#: Inspections at once: each reads a whole MAP.
_AT_ONCE = 2
#: Seconds between two words about how far an inspection is.
PROGRESS_S = 1.0
#: How many answers are remembered for a question that comes twice, because the first took long.
_REMEMBERED = 64

_log = telemetry.log("agent")


class Inspector:
    """Answers `inspect` commands by reports."""

    def __init__(
        self, node: str, effects: Effects, runtime_for: Callable[[str], Runtime | None], holdings: Holdings
    ) -> None:
        self._node = node
        self._effects = effects
        self._runtime_for = runtime_for
        self._holdings = holdings
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
            found = await self._read(asked)
            manifests = _texts(found.manifests)
        except MapUnreadable as error:
            return report.but(reason=Reason.of(error.reason, str(error)))
        except GurneyError as error:
            if error.retryable:
                raise  # the question comes again
            return report.but(reason=Reason.of(error.code, str(error)))
        self._holdings.brought(found.digest)
        command = found.command if asked.described else ()  # else the manifest says what runs
        if len(to_json(command)) > COMMAND_LIMIT:
            text = f"The image's own command has over {COMMAND_LIMIT} bytes"
            return report.but(reason=Reason.of("command_too_large", text))
        return report.but(phase="done", digest=found.digest, manifests=manifests, command=command)

    async def _read(self, asked: InspectMap) -> Inspection:
        runtime = self._runtime_for(asked.urn)
        if runtime is None:
            raise MapUnreadable("no_runtime", f"no runtime of this node runs {asked.urn}")
        now = _Now()
        telling = asyncio.create_task(self._tell(asked, now))
        try:
            return await runtime.inspect(asked.urn, described=asked.described, progress=now.note)
        finally:
            telling.cancel()

    async def _tell(self, asked: InspectMap, now: "_Now") -> None:
        """Tell how far it is, once in a while."""
        told = None
        while True:
            await asyncio.sleep(PROGRESS_S)
            if now.progress is not told:
                told = now.progress
                report = InspectReport(
                    id=asked.id, map_id=asked.map_id, node=self._node, phase="progress", progress=told
                )
                with contextlib.suppress(GurneyError):
                    await self._effects.inspected(report)


class _Now:
    """How far an inspection is; noted from any thread."""

    def __init__(self) -> None:
        self.progress: Progress | None = None

    def note(self, phase: str, done: int, total: int | None) -> None:
        self.progress = Progress(phase=phase, done=done, total=total)


def _texts(manifests: Mapping[str, bytes]) -> dict[str, str]:
    size = sum(map(len, manifests.values()))
    if size > MANIFEST_LIMIT:
        raise MapUnreadable("manifest_too_large", f"The manifests have {size} bytes, {MANIFEST_LIMIT} are allowed")
    return {path: raw.decode("utf-8-sig", errors="replace") for path, raw in manifests.items()}
