"""Publishes the events that documents carry, in the order in which they were written, and again what a crash left.

Events are sent from memory while all goes well. When a send fails, memory is dropped and the documents are read until
nothing is left in them; so a long outage costs no memory and no order. What has lain for seconds is anybody's: its
writer may be dead, and JetStream drops what it has already.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from gurney import telemetry
from gurney.bus import Bus
from gurney.clock import now
from gurney.documents.port import Collection, Documents
from gurney.errors import GurneyError
from gurney.model.event import Event
from gurney.subjects import shape_of

_log = telemetry.log("outbox")

RETRY_S = 0.5
BATCH = 256
#: An event stays this long in the documents before a sweep believes that it was lost; seconds between two sweeps.
SWEEP_AGE_S, SWEEP_EVERY_S = 3.0, 2.0
#: Seconds for which the last events of a service that ends are tried.
FINISH_S = 2.0

Queued = tuple[Collection[Any], Event]


class Outbox:
    """One per service."""

    def __init__(self, bus: Bus, documents: Documents, collections: Sequence[Collection[Any]]) -> None:
        self._bus = bus
        self._documents = documents
        self._collections = collections
        #: None only wakes `run` up.
        self._queue: asyncio.Queue[Queued | None] = asyncio.Queue()
        #: The ids of what is in the queue, or on its way.
        self._waiting: set[str] = set()
        self._behind = True
        #: That events wait was told, and nothing was sent since.
        self._told = False

    def push(self, collection: Collection[Any], events: Sequence[Event]) -> None:
        """Send these soon; they are in the documents already."""
        if not self._behind:
            for event in events:
                self._waiting.add(event.id)
                self._queue.put_nowait((collection, event))

    async def run(self) -> None:
        """Publish for ever. Begins with what a crash left."""
        while True:
            try:
                if self._behind:
                    await self._catch_up()
                else:
                    await self._send(await self._next())
            except GurneyError as error:
                tell = _log.debug if self._told else _log.warning
                tell("events wait", service=self._bus.service, error=error)
                self._told = True
                self._fall_behind()
                await asyncio.sleep(RETRY_S)

    async def finish(self) -> None:
        """Publish what is left when `run` has ended, so that it need not wait for somebody's sweep."""
        if not self._bus.raw.is_connected:
            return
        try:
            async with asyncio.timeout(FINISH_S):
                await self._catch_up()
        except (GurneyError, TimeoutError) as error:
            _log.info("events are left to a sweep", service=self._bus.service, error=error)

    async def sweep(self) -> None:
        """Look, for ever, for what has stayed unpublished although it was sent, or whose writer is gone."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            try:
                await self._sweep()
            except GurneyError as error:
                _log.debug("no sweep of events", service=self._bus.service, error=error)

    async def _sweep(self) -> None:
        late = [(each, event) for each in self._collections for event in await self._late(each)]
        age = max(((now() - event.at).total_seconds() for _, event in late), default=0.0)
        telemetry.OUTBOX_AGE.labels(self._bus.service).set(age)
        for collection, event in late:
            if event.id not in self._waiting:
                self.push(collection, [event])

    async def _late(self, collection: Collection[Any]) -> list[Event]:
        return await self._documents.unpublished(collection, SWEEP_AGE_S)

    def catch_up_soon(self) -> None:
        """Publish what is unpublished now, whoever wrote it: a replica that is gone may have left it."""
        self._fall_behind()

    def _fall_behind(self) -> None:
        self._behind = True
        while not self._queue.empty():
            self._queue.get_nowait()
        self._waiting.clear()
        self._queue.put_nowait(None)

    async def _catch_up(self) -> None:
        self._behind = False  # what is written from now on comes through the queue, or is found here, or both
        for collection in self._collections:
            while left := await self._documents.unpublished(collection, 0):
                await self._send([(collection, event) for event in left])

    async def _next(self) -> list[Queued]:
        batch = [await self._queue.get()]
        while len(batch) < BATCH and not self._queue.empty():
            batch.append(self._queue.get_nowait())
        return [queued for queued in batch if queued is not None]

    async def _send(self, batch: Sequence[Queued]) -> None:
        await self._bus.publish_events([event for _, event in batch])
        self._told = False
        by_collection: dict[str, tuple[Collection[Any], list[str]]] = {}
        for collection, event in batch:
            by_collection.setdefault(collection.name, (collection, []))[1].append(event.id)
            telemetry.PUBLISHED.labels(shape_of(event.subject)[0]).inc()
        for collection, ids in by_collection.values():
            await self._documents.settle(collection, ids)
            self._waiting.difference_update(ids)
