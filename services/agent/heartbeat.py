"""Shows the scheduler that this node is there, what it has and which runs it knows."""

import asyncio

from gurney import clock, telemetry
from gurney.errors import GurneyError
from gurney.model.run import Heartbeat
from gurney.settings import Settings
from services.agent.effects import Effects
from services.agent.supervisor import Supervisor

_RETRY_S = 0.5

_log = telemetry.log("agent")


class Heart:
    """Beats at once, then every interval, and whenever it is asked to. One per start of the agent."""

    def __init__(self, settings: Settings, effects: Effects, supervisor: Supervisor, *, incarnation: str) -> None:
        self._settings = settings
        self._effects = effects
        self._supervisor = supervisor
        self._incarnation = incarnation
        self._wake = asyncio.Event()

    async def soon(self) -> None:
        """Beat now: the connection or a stream is new, and what was said may be gone."""
        self._wake.set()

    async def beat(self) -> None:
        """Beat for ever. The runs of before were found again when this begins."""
        while True:
            self._wake.clear()
            pause = self._settings.heartbeat_interval
            try:
                await self._effects.beat(self._heartbeat())
            except GurneyError as error:  # whatever the reason: the next beat is the remedy
                _log.info("heartbeat failed", error=str(error))
                pause = min(pause, _RETRY_S)
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(
            node=self._settings.node,
            incarnation=self._incarnation,
            at=clock.now(),
            capacity=self._supervisor.capacity,
            kinds=self._supervisor.kinds,
            runs=self._supervisor.run_ids,
        )
