"""One time of leading: its epoch, and whether it still holds. Who writes or answers for the leader asks here first."""

import asyncio
import math

from gurney import clock, telemetry
from gurney.errors import Unavailable

_log = telemetry.log("scheduler")


class Deposed(Unavailable):
    """This scheduler does not lead, or no longer; whoever asked shall ask again."""


class Tenure:
    """Begins with its epoch; ends when its time is over, when a newer epoch is seen, or when it is given up."""

    def __init__(self) -> None:
        self.epoch = 0
        #: The newest epoch that was seen; another's, where it is above our own.
        self.newest = 0
        self._until = math.inf
        self._over = asyncio.Event()

    def begin(self, epoch: int) -> None:
        self.epoch = self.newest = epoch

    def hold_until(self, until: float) -> None:
        """Act until then, by the monotonic clock; what is over stays over."""
        self._until = until

    @property
    def leads(self) -> bool:
        return not self._over.is_set() and clock.monotonic() < self._until

    def check(self) -> None:
        """Raise `Deposed` where somebody else may lead by now: a process may have been frozen at any line."""
        if not self.leads:
            self.end()
            raise Deposed("this scheduler does not lead", retry_after_s=1)

    def check_epoch(self, epoch: int) -> None:
        """Raise `Deposed` at the sight of a newer leadership. Who is alone cannot be deposed, whatever it sees."""
        if epoch > self.epoch and not math.isinf(self._until):
            _log.warning("a newer scheduler leads", epoch=epoch, own=self.epoch)
            self.newest = max(self.newest, epoch)
            self.end()
        self.check()

    def end(self) -> None:
        self._over.set()

    async def over(self) -> None:
        """Wait until the tenure was ended, or could not be held."""
        while self.leads:
            try:
                async with asyncio.timeout(None if math.isinf(self._until) else self._until - clock.monotonic()):
                    await self._over.wait()
            except TimeoutError:
                continue
        self.end()
