"""Inspections of MAPs: asked for, reported, tried again on another node, given up."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

from gurney import clock, ids, telemetry
from gurney.documents.port import Collection
from gurney.errors import GurneyError, Unavailable
from gurney.model.base import Reason
from gurney.model.event import Event
from gurney.model.map import InspectReport, Map, MapState
from gurney.service import Service
from services.map import effects, machine, repository

#: Seconds between two looks at a MAP whose report another replica may have taken.
LOOK_S = 0.05
#: Seconds after which an inspection is asked for again: a node may be about to join.
AGAIN_S = 1.0

#: What tells of a MAP that an inspection has brought to this.
Tell = Callable[[Map, datetime], Sequence[Event]]

_log = telemetry.log("map")


class Inspections:
    """Those of one collection."""

    def __init__(self, service: Service, collection: Collection[Map], tell: Tell) -> None:
        self._bus = service.bus
        self._store = service.store
        self._reconcile_soon = service.reconcile_soon
        self._collection = collection
        self._tell = tell
        self._asking: set[asyncio.Task[None]] = set()

    def soon(self, document: Map) -> None:
        """Ask for an inspection, and do not wait for it."""
        task = asyncio.create_task(self.ask(document))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def ask(self, document: Map) -> None:
        """Ask for an inspection; while no node is there, the reconciler asks again."""
        inspection = document.inspecting
        if inspection is None:
            return
        try:
            node = await effects.ask_inspection(self._bus, document)
        except Unavailable as error:
            _log.info("inspection waits", map=document.id, error=error)
            asyncio.get_running_loop().call_later(AGAIN_S, self._reconcile_soon)
            return
        except GurneyError as error:
            refused = Reason.of(error.code, str(error))
            await self._change(document.id, lambda found, _: machine.refused(found, refused))
            return
        await self._change(document.id, lambda found, _: machine.asked(found, inspection.id, node))

    async def reported(self, report: InspectReport) -> None:
        """Fold a node's report in, if the MAP is one of these."""
        if await self._store.documents.get(self._collection, report.map_id):
            await self._change(report.map_id, lambda found, now: machine.reported(found, report, now))

    async def reconcile(self) -> None:
        """Ask again for inspections that no node has, and give up those past their deadline and attempts."""
        for document in await repository.registering(self._store, self._collection):
            renewed = await self._change(
                document.id, lambda found, now: machine.next_attempt(found, ids.new_id("ins"), now)
            )
            if machine.is_unasked(renewed):
                await self.ask(renewed)

    async def settled(self, map_id: str, within_s: float) -> Map:
        """Return the MAP once it was read, or as it is when time is over."""
        deadline = clock.monotonic() + within_s
        while True:
            found = await self._store.get(self._collection, map_id)
            if found.state is not MapState.REGISTERING or clock.monotonic() > deadline:
                return found
            await asyncio.sleep(LOOK_S)

    async def _change(self, map_id: str, decide: Callable[[Map, datetime], Map | None]) -> Map:
        now = clock.now()

        def change(found: Map) -> tuple[Map, Sequence[Event]] | None:
            after = decide(found, now)
            return (after, self._tell(after, now)) if after else None

        return await self._store.update(self._collection, map_id, change)
