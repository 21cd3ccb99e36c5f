"""What a node reports of a MAP that it has read."""

from typing import Any

import pytest

from gurney.model.map import InspectMap, InspectReport
from gurney.runtime.port import Inspection
from services.agent.holdings import Holdings
from services.agent.inspection import COMMAND_LIMIT, Inspector


class _Effects:
    def __init__(self) -> None:
        self.told: list[InspectReport] = []

    async def inspected(self, report: InspectReport) -> None:
        self.told.append(report)


class _Runtime:
    def __init__(self, command: tuple[str, ...]) -> None:
        self._command = command

    async def inspect(self, urn: str, **_: Any) -> Inspection:
        del urn
        return Inspection("sha256:0", {}, self._command)


async def reported(command: tuple[str, ...], *, described: bool) -> InspectReport:
    effects, runtime = _Effects(), _Runtime(command)
    inspector = Inspector("n1", effects, lambda _: runtime, Holdings([], 0))  # type: ignore[arg-type, return-value]
    await inspector.inspect(InspectMap(id="ins_1", map_id="map_1", urn="urn:oci:a", described=described))
    return effects.told[-1]


async def test_the_own_command_of_an_image_is_told_where_it_is_needed() -> None:
    """It runs where somebody describes the MAP who names no other; else the manifest says what runs."""
    assert (await reported(("a", "b"), described=True)).command == ("a", "b")
    assert (await reported(("a", "b"), described=False)).command == ()


@pytest.mark.parametrize("command", [("a" * (COMMAND_LIMIT + 1),), ("a",) * (COMMAND_LIMIT + 1)])
async def test_a_command_that_no_message_carries_is_a_fault_of_the_image(command: tuple[str, ...]) -> None:
    """It is told as one; where it is not needed it does no harm."""
    refused = await reported(command, described=True)
    assert (refused.phase, refused.reason and refused.reason.code) == ("failed", "command_too_large")
    assert (await reported(command, described=False)).phase == "done"
