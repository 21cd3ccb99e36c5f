"""Turns events of jobs into deliveries, many at a time, and tells the job service which ended jobs are told."""

import asyncio
from collections.abc import Sequence

from gurney import clock, ids, telemetry
from gurney.bus import Bus
from gurney.documents.port import Write
from gurney.errors import GurneyError, KeyTaken
from gurney.model.handler import TERMINAL_EVENTS, Delivery
from gurney.model.job import JobEvent, JobOwed, JobRefs
from gurney.store import Store
from gurney.subjects import JOB_NOTIFIED, JOB_OWED
from services.notifier import policy
from services.notifier.known import KnownHandlers
from services.notifier.lanes import Lanes
from services.notifier.repository import DELIVERIES

#: Seconds for which ids of told jobs are collected before the job service hears of them.
MARK_AFTER_S = 0.5
MARK_AT_ONCE = 256

_log = telemetry.log("notifier")


class Telling:
    """Events in, deliveries out; unique on (event, handler), so an event may come twice."""

    def __init__(self, bus: Bus, store: Store, lanes: Lanes, known: KnownHandlers) -> None:
        self._bus = bus
        self._known = known
        self._store = store
        self._lanes = lanes
        self._queue: asyncio.Queue[tuple[JobEvent, asyncio.Future[None]]] = asyncio.Queue()
        self._told: list[str] = []
        self._marking = asyncio.Event()

    async def heard(self, subject: str, data: bytes) -> None:
        """Take an event in; returns when its deliveries are stored."""
        kind = ".".join(subject.split(".")[:2])
        if kind not in TERMINAL_EVENTS and not policy.heeded(await self._known.recent(), kind):
            return
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((JobEvent.decode(data).but(traceparent=telemetry.traceparent()), stored))
        await stored

    async def run(self) -> None:
        """Store deliveries for all that was heard meanwhile, in one go, for ever."""
        while True:
            heard = [await self._queue.get()]
            while not self._queue.empty():
                heard.append(self._queue.get_nowait())
            try:
                await self.tell([event for event, _ in heard])
            except Exception as error:  # whatever it is: they come again, and who waits here is told
                if not isinstance(error, GurneyError):
                    _log.exception("events are not told")
                for _, stored in heard:
                    if not stored.done():
                        stored.set_exception(error)
            else:
                for _, stored in heard:
                    if not stored.done():
                        stored.set_result(None)

    async def tell(self, events: Sequence[JobEvent]) -> None:
        """Store and hand over what these events make due."""
        now = clock.now()
        ended = any(f"job.{event.event}" in TERMINAL_EVENTS for event in events)
        handlers = await self._known.fresh() if ended else await self._known.recent()
        made = policy.deliveries(handlers, events, iter(_delivery_id, ""), now)
        self._lanes.hand(await self._insert(made))
        self._told += [event.id for event in events if f"job.{event.event}" in TERMINAL_EVENTS]
        if self._told:
            self._marking.set()

    async def _insert(self, made: Sequence[Delivery]) -> list[Delivery]:
        if not made:
            return []
        results = await self._store.write(*[Write(DELIVERIES, each.id, 0, each) for each in made])
        faults = [fault for fault in results if fault and not isinstance(fault, KeyTaken)]
        if faults:
            raise faults[0]
        return [each for each, fault in zip(made, results, strict=True) if fault is None]

    async def mark(self) -> None:
        """Tell the job service which jobs are told, for ever; what is lost here, the reconciler finds."""
        while True:
            await self._marking.wait()
            await asyncio.sleep(MARK_AFTER_S)
            self._marking.clear()
            try:
                while self._told:
                    batch = tuple(self._told[:MARK_AT_ONCE])
                    await self._bus.request(JOB_NOTIFIED, JobRefs(jobs=batch))
                    del self._told[: len(batch)]
            except GurneyError as error:
                _log.info("told jobs are marked later", error=error)
                self._told.clear()

    async def make_up(self) -> None:
        """Tell of ended jobs whose event was never heard."""
        after: str | None = None
        while True:
            owed = await self._bus.request(JOB_OWED, JobOwed(kind="unnotified", after=after))
            await self.tell(owed.ended)
            after = owed.next
            if after is None:
                return


def _delivery_id() -> str:
    return ids.new_id("dlv")
