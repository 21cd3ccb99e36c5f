"""Standing by, taking the lease, leading under it, and standing by again. One per scheduler that is not alone."""

import asyncio
import contextlib
from collections.abc import Callable

from gurney import clock, telemetry
from gurney.errors import GurneyError, RevisionConflict
from gurney.ids import new_secret
from gurney.model.run import Leadership
from gurney.service import Parts, Service
from gurney.tasks import checkpoint
from services.scheduler import lease, process
from services.scheduler.lease import LEADER
from services.scheduler.repository import LEASE
from services.scheduler.tenure import Tenure

#: A standby looks this often whether the leader has let go, and so many times in a term at least.
LOOK_S = 0.5
LOOKS = 20
#: What letting go of the lease may take.
LETS_GO_S = 1.0
#: What answers that were begun may take before the lease is given up.
LAST_ANSWERS_S = 0.3
RETRY_S = 0.2

_log = telemetry.log("scheduler")


class Campaign:
    """`parts` returns what a leader does, made anew for each tenure: only documents remember from one to the next."""

    def __init__(self, service: Service, parts: Callable[[Tenure], Parts]) -> None:
        self._service = service
        self._store = service.store
        self._parts = parts
        self._term = service.settings.leader_term
        self._look_s = min(LOOK_S, self._term / LOOKS)
        self._process = ""
        #: The newest epoch that any agent has heard of, as far as we know.
        self._heard = 0

    async def run(self) -> None:
        """Stand by and lead, for ever."""
        self._process = await asyncio.to_thread(process.own)
        while True:
            tenure, mine = await self._win()
            try:
                await self._lead(tenure, mine)
            except GurneyError as error:
                _log.warning("leading ended", epoch=tenure.epoch, error=error)
                await asyncio.sleep(RETRY_S)
            self._heard = max(self._heard, tenure.newest)
            checkpoint()

    # --- standing by ---

    async def _win(self) -> tuple[Tenure, Leadership]:
        """Take the lease as soon as it is free."""
        sight: lease.Sight | None = None
        while True:
            asked = clock.monotonic()
            try:
                found = await self._store.documents.get(LEASE, LEADER)
                sight = lease.sighted(sight, found, clock.monotonic())
                if lease.is_free(found, sight, asked, self._term) or await self._is_gone(found):
                    return await self._take(found)
            except RevisionConflict:
                continue  # somebody was quicker
            except GurneyError as error:
                _log.info("the lease cannot be read", error=error)
                sight = None
            await asyncio.sleep(self._look_s)

    async def _take(self, found: Leadership | None) -> tuple[Tenure, Leadership]:
        asked = clock.monotonic()
        mine = lease.taken(found, new_secret(), self._process, self._heard)
        await self._store.replace(LEASE, mine)
        tenure = Tenure()
        tenure.begin(mine.epoch)
        tenure.hold_until(lease.acts_until(asked, self._term))
        return tenure, mine

    async def _is_gone(self, found: Leadership | None) -> bool:
        """Tell whether the holder was a process of this host that has ended."""
        return found is not None and await asyncio.to_thread(process.has_ended, found.process)

    # --- leading ---

    async def _lead(self, tenure: Tenure, mine: Leadership) -> None:
        """Lead until the lease is another's, or could not be renewed in time, or this process ends."""
        renewing = asyncio.create_task(self._renew(tenure, mine), name="scheduler:lease")
        parts = self._parts(tenure)
        try:
            async with self._service.serving(parts):
                self._service.publish_left()
                desk = contextlib.AsyncExitStack()
                # The queue group of this epoch: a former leader that is frozen takes no question away from us.
                await desk.enter_async_context(self._service.answering(parts.answers, f"scheduler-{tenure.epoch}"))
                try:
                    checkpoint()
                    await tenure.over()
                finally:
                    closing = asyncio.create_task(desk.aclose(), name="scheduler:closing")
                    await asyncio.wait([closing], timeout=LAST_ANSWERS_S)
                    tenure.end()
                    await self._give_up(mine)  # before the rest ends, which may take longer
                    await closing
        finally:
            tenure.end()
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            _log.info("leads no more", epoch=tenure.epoch)

    async def _give_up(self, mine: Leadership) -> None:
        """Let go, so that nobody waits for the term."""
        try:
            async with asyncio.timeout(LETS_GO_S):
                found = await self._store.get(LEASE, LEADER)
                if free := lease.given_up(found, mine):
                    await self._store.replace(LEASE, free)
        except (GurneyError, TimeoutError) as error:
            _log.info("the lease is not given up", error=error)

    async def _renew(self, tenure: Tenure, mine: Leadership) -> None:
        """Renew until somebody else has the lease; a renewal that fails is tried again until the time is over."""
        while tenure.leads:
            await asyncio.sleep(lease.RENEW_AFTER * self._term)
            with contextlib.suppress(GurneyError):
                while not await self._renew_once(tenure, mine):
                    pass

    async def _renew_once(self, tenure: Tenure, mine: Leadership) -> bool:
        asked = clock.monotonic()
        try:
            async with asyncio.timeout(self._term):
                found = await self._store.get(LEASE, LEADER)
                after = lease.renewed(found, mine)
                if after is None:
                    tenure.check_epoch(found.epoch)
                    tenure.end()
                    return True
                await self._store.replace(LEASE, after)
        except (GurneyError, TimeoutError) as error:
            _log.warning("the lease is not renewed", epoch=mine.epoch, error=error)
            tenure.check()
            await asyncio.sleep(RETRY_S)
            return False
        tenure.hold_until(lease.acts_until(asked, self._term))
        return True
