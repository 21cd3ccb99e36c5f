"""How the agent hears of the ends of its runs."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

from gurney.runtime.port import Observed
from services.agent.supervisor import Supervisor


class Runtime:
    """Breaks off by a defect at first; then it is closed."""

    def __init__(self) -> None:
        self.begun = 0

    async def ends(self) -> AsyncIterator[Observed]:
        self.begun += 1
        if self.begun == 1:
            raise KeyError("a defect")
        return
        yield

    async def runs(self) -> list[Observed]:
        return []


async def test_whatever_breaks_off_the_agent_listens_again() -> None:
    """Without it no run would end any more."""
    runtime: Any = Runtime()
    supervisor = Supervisor(cast("Any", None), [])
    async with asyncio.timeout(20):
        await supervisor._listen(runtime, runtime.ends())  # a task that nobody waits for
    assert runtime.begun == 2
