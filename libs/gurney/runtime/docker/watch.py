"""Hears what becomes of containers: the daemon's events, through as many daemons as there are.

Events are not told again. So after each connect, and before the first event is looked at, everything is taken stock of.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from gurney import telemetry
from gurney.errors import GurneyError
from gurney.runtime.docker.daemon import Daemon
from gurney.tasks import checkpoint

_FIRST_S, _LONGEST_S = 0.1, 5.0
#: Seconds between two questions whether the daemon is well, and that an answer may take: one that is frozen breaks
#: nothing off.
_PULSE_S, _ANSWER_S = 2.0, 4.0

Event = Mapping[str, Any]
_log = telemetry.log("agent")


class Watch:
    """One watch. `is_up` tells whether the daemon answers and all is taken stock of."""

    def __init__(
        self,
        daemon: Daemon,
        label: str,
        take_stock: Callable[[], Awaitable[None]],
        hear: Callable[[Event], None],
    ) -> None:
        self._daemon = daemon
        self._label = label
        self._take_stock = take_stock
        self._hear = hear
        self._task: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()
        self.is_up = False

    async def open(self) -> None:
        """Begin, and return when the daemon answered or did not."""
        self._task = asyncio.create_task(self._watch())
        await self._tried.wait()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        pause = _FIRST_S
        while True:
            try:
                await self._connected()
                pause = _FIRST_S
                _log.warning("the Docker daemon has broken off", url=self._daemon.url)
            except GurneyError as error:
                if not self._tried.is_set() or self.is_up:
                    _log.warning("the Docker daemon is away", url=self._daemon.url, error=error)
                pause = min(2 * pause, _LONGEST_S)
            except Exception:  # whatever it was: the next round is the remedy
                _log.exception("watching the Docker daemon failed")
                pause = _LONGEST_S
            self.is_up = False
            self._daemon.lost()
            self._tried.set()
            checkpoint()
            await asyncio.sleep(pause)

    async def _connected(self) -> None:
        """Connect, take stock, and hear until the daemon breaks off."""
        await self._daemon.connect()
        async with self._daemon.events(self._label, ("start", "oom", "kill", "die")) as events:
            await self._take_stock()
            self.is_up = True
            self._tried.set()
            pulse = asyncio.create_task(self._pulse())
            try:
                async for event in events:
                    self._hear(event)
            finally:
                pulse.cancel()
                await asyncio.gather(pulse, return_exceptions=True)

    async def _pulse(self) -> None:
        """See whether the daemon answers, for as long as it has not broken off."""
        while True:
            await asyncio.sleep(_PULSE_S)
            answers = await self._daemon.answers(_ANSWER_S)
            if answers != self.is_up:
                self.is_up = answers
                _log.warning("the Docker daemon answers again or no more", answers=answers, url=self._daemon.url)
