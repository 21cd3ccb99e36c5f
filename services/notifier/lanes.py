"""One lane per handler, so that a dead target delays no other. Documents are the truth; lanes a bounded hand-off."""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Iterable
from datetime import datetime, timedelta

from gurney import clock, telemetry
from gurney.documents.port import Write
from gurney.errors import GurneyError, NotFound, RevisionConflict
from gurney.model.handler import Delivery, Handler
from gurney.settings import Settings
from gurney.store import Store
from services.notifier import policy, repository
from services.notifier.known import KnownHandlers
from services.notifier.repository import DELIVERIES, HANDLERS
from services.notifier.sender import Sender

#: Deliveries of one handler under way at once.
WIDTH = 8
#: Deliveries that a lane holds in memory; more stay in the documents until they are due again.
LENGTH = 1024
#: Seconds between two looks for what is due: at least, and at most.
PAUSE_S, LONGEST_S = 0.25, 30.0
#: Seconds until the next look where the documents could not be read.
RETRY_S = 2.0
#: Seconds that an attempt may take beyond the target's time.
MARGIN_S = 5.0

_log = telemetry.log("notifier")


class Lanes:
    """Delivers what was taken, and looks for what is due. `alone`: what an earlier life had taken, nobody delivers."""

    def __init__(self, store: Store, sender: Sender, known: KnownHandlers, settings: Settings, *, alone: bool) -> None:
        self._store = store
        self._known = known
        self._sender = sender
        self._patience = settings.webhook_patience
        self._attempt_s = settings.webhook_timeout + MARGIN_S
        self._born = clock.now() if alone else None
        self._waiting: dict[str, deque[Delivery]] = {}
        self._workers: dict[str, set[asyncio.Task[None]]] = {}
        self._held: set[str] = set()
        self._wake = asyncio.Event()

    def hand(self, deliveries: Iterable[Delivery]) -> None:
        """Deliver these, which this process has taken."""
        for delivery in deliveries:
            lane = self._waiting.setdefault(delivery.handler, deque())
            if len(lane) >= LENGTH:
                continue  # the time for which it is taken passes, then it is due again
            lane.append(delivery)
            self._held.add(delivery.id)
            self._staff(delivery.handler)

    def wake(self) -> None:
        """Look for what is due now."""
        self._wake.set()

    async def run(self) -> None:
        """Hand over what comes due, for ever."""
        try:
            while True:
                self._wake.clear()
                try:
                    await self._hand_due()
                    due = await repository.next_due(self._store)
                except GurneyError as error:
                    _log.warning("what is due waits", error=error)
                    due = clock.now() + timedelta(seconds=RETRY_S)
                await self._sleep(due)
        finally:
            workers = [task for lane in self._workers.values() for task in lane]
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _hand_due(self) -> None:
        now = clock.now()
        free = [each for each in await repository.due(self._store, now) if each.id not in self._held]
        taken = [each for each in (policy.take(delivery, now, self._born) for delivery in free) if each]
        faults = await self._store.write(*[Write(DELIVERIES, each.id, each.revision - 1, each) for each in taken])
        # A fault: another took it.
        self.hand(delivery for delivery, fault in zip(taken, faults, strict=True) if fault is None)

    async def _sleep(self, due: datetime | None) -> None:
        await asyncio.sleep(PAUSE_S)  # many that fail in a moment wake this once
        wait = LONGEST_S if due is None else (due - clock.now()).total_seconds()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(LONGEST_S, max(0.0, wait))):
                await self._wake.wait()

    def _staff(self, handler: str) -> None:
        workers = self._workers.setdefault(handler, set())
        if len(workers) < WIDTH:
            task = asyncio.create_task(self._work(handler))
            workers.add(task)
            task.add_done_callback(lambda done: self._left(handler, done))

    def _left(self, handler: str, task: asyncio.Task[None]) -> None:
        self._workers[handler].discard(task)
        if not self._workers[handler] and not self._waiting.get(handler):
            self._workers.pop(handler)
            self._waiting.pop(handler, None)

    async def _work(self, handler: str) -> None:
        lane = self._waiting[handler]
        while lane:
            delivery = lane.popleft()
            try:
                await self._deliver(delivery)
            except Exception as error:
                _log.warning("delivery comes again", delivery=delivery.id, error=error)
            finally:
                self._held.discard(delivery.id)

    async def _deliver(self, delivery: Delivery) -> None:
        handler = await self._store.documents.get(HANDLERS, delivery.handler)
        if handler is None or handler.deleting:
            await self._store.remove(DELIVERIES, delivery)
            return
        if ended := policy.given_up(delivery, handler):
            with contextlib.suppress(RevisionConflict):  # another took it, and sees the same
                await self._store.replace(DELIVERIES, ended)
            return
        if later := policy.kept(delivery, clock.now(), self._attempt_s):
            try:
                delivery = await self._store.replace(DELIVERIES, later)
            except RevisionConflict:
                return  # it has waited here for so long that another took it
        attempt = await self._sender.send(handler, delivery)
        after = policy.tried(delivery, attempt, self._patience, random.random())  # noqa: S311  # not a secret
        try:
            await self._store.replace(DELIVERIES, after)
        except RevisionConflict:
            _log.info("delivery was taken by another meanwhile", delivery=delivery.id)
        if attempt.status == policy.GONE:
            await self._disable(handler)
        if after.next_attempt_at:
            self.wake()

    async def _disable(self, handler: Handler) -> None:
        """A target that answers 410 wants no more (Standard Webhooks)."""
        try:
            await self._store.update(HANDLERS, handler.id, lambda found: (found.next(state="disabled"), ()))
        except NotFound:
            return
        self._known.changed()
