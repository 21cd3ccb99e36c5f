"""Messages of the MAP service: message -> decide -> store -> effects."""

import asyncio
from datetime import datetime

from gurney import clock, ids, telemetry
from gurney.errors import GurneyError, KeyTaken, MapInUse, NameTaken, Unavailable
from gurney.model.base import Reason
from gurney.model.common import Empty, Page, Ref, Rename
from gurney.model.event import Event
from gurney.model.job import MapJobs
from gurney.model.map import InspectReport, Map, MapList, MapRegister, MapState
from gurney.paths import check_name
from gurney.service import Service
from gurney.subjects import JOB_LIVE
from services.map import effects, machine, repository, urn
from services.map.repository import MAPS

_log = telemetry.log("map")


class Handlers:
    """Everything that the service is asked and told."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._bus = service.bus
        self._store = service.store
        self._asking: set[asyncio.Task[None]] = set()

    # --- questions ---

    async def register(self, question: MapRegister) -> Map:
        document = _new_map(question, clock.now())
        if question.dry_run:
            return document
        event = effects.told("registered", document, document.created_at)
        try:
            await self._store.insert(MAPS, document, event)
        except KeyTaken as taken:
            return await self._taken(question, taken)
        task = asyncio.create_task(self._inspect(document))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return document

    async def get(self, question: Ref) -> Map:
        return await repository.resolve(self._store, question.caller, question.ref)

    async def page(self, question: MapList) -> Page[Map]:
        return await repository.page(self._store, question)

    async def rename(self, question: Rename) -> Map:
        name = None if question.name is None else check_name(question.name)
        found = await repository.resolve(self._store, question.caller, question.ref)
        now = clock.now()

        def change(document: Map) -> tuple[Map, list[Event]] | None:
            if document.name == name or document.state is MapState.UNREGISTERED:
                return None
            after = document.next(name=name)
            return after, [effects.told("named", after, now)]

        try:
            return await self._store.update(MAPS, found.id, change)
        except KeyTaken as taken:
            raise NameTaken(f"the name {name} is that of {taken.holder}") from taken

    async def unregister(self, question: Ref) -> Empty:
        found = await repository.resolve(self._store, question.caller, question.ref)
        live = await self._bus.request(JOB_LIVE, MapJobs(map=found.id))
        if live.count:
            raise MapInUse(f"{live.count} jobs of {found.id} are live: {', '.join(live.jobs)}")
        now = clock.now()

        def change(document: Map) -> tuple[Map, list[Event]] | None:
            after = machine.unregistered(document)
            return (after, [effects.told("unregistered", after, now)]) if after else None

        await self._store.update(MAPS, found.id, change)
        return Empty()

    # --- inspections ---

    async def reported(self, subject: str, data: bytes) -> None:
        """Fold a node's report in."""
        del subject
        report = InspectReport.decode(data)
        now = clock.now()

        def change(document: Map) -> tuple[Map, list[Event]] | None:
            after = machine.reported(document, report, now)
            return (after, _outcome(after, now)) if after else None

        if await self._store.documents.get(MAPS, report.map_id):
            await self._store.update(MAPS, report.map_id, change)

    async def reconcile(self) -> None:
        """Ask again for inspections that no node has, and give up those past their deadline and attempts."""
        now = clock.now()
        for document in await repository.registering(self._store):
            renewed = await self._renew(document, now)
            if renewed.state is MapState.REGISTERING and renewed.inspecting and not _is_asked(renewed):
                await self._inspect(renewed)

    async def _renew(self, document: Map, now: datetime) -> Map:
        def change(found: Map) -> tuple[Map, list[Event]] | None:
            after = machine.next_attempt(found, ids.new_id("ins"), now)
            return (after, _outcome(after, now)) if after else None

        return await self._store.update(MAPS, document.id, change)

    async def _inspect(self, document: Map) -> None:
        """Ask for an inspection; what is away now, the reconciler asks again."""
        inspection = document.inspecting
        if inspection is None:
            return
        try:
            node = await effects.ask_inspection(self._bus, document)
        except Unavailable as error:
            _log.info("inspection waits", map=document.id, error=error)
            return
        except GurneyError as error:
            await self._refuse(document, Reason.of(error.code, str(error)))
            return
        await self._store.update(
            MAPS,
            document.id,
            lambda found: (after, []) if (after := machine.asked(found, inspection.id, node)) else None,
        )

    async def _refuse(self, document: Map, reason: Reason) -> None:
        now = clock.now()

        def change(found: Map) -> tuple[Map, list[Event]] | None:
            if found.state is not MapState.REGISTERING:
                return None
            after = machine.invalid(found, reason)
            return after, _outcome(after, now)

        await self._store.update(MAPS, document.id, change)

    async def _taken(self, question: MapRegister, taken: KeyTaken) -> Map:
        """Answer a repeated request with its first result, or say what is taken."""
        if not taken.key.startswith("idempotency:") or question.idempotency is None:
            raise NameTaken(f"the name {question.body.name} is that of {taken.holder}") from taken
        return (await self._store.get(MAPS, taken.holder)).repeated(question.idempotency)


def _is_asked(document: Map) -> bool:
    """Tell whether a node has been told of the current attempt."""
    return document.inspecting is not None and len(document.inspecting.nodes) >= document.inspecting.attempt


def _outcome(document: Map, now: datetime) -> list[Event]:
    ended = document.state in {MapState.READY, MapState.INVALID}
    return [effects.told(document.state.value, document, now)] if ended else []


def _new_map(question: MapRegister, now: datetime) -> Map:
    body, caller = question.body, question.caller
    return Map(
        id="" if question.dry_run else ids.new_id("map"),
        project=caller.project,
        created_by=caller.subject,
        created_at=now,
        idempotency=question.idempotency,
        name=None if body.name is None else check_name(body.name),
        urn=urn.normalise(body.urn),
        state=MapState.REGISTERING,
        labels=body.labels,
        inspecting=machine.first_inspection(ids.new_id("ins"), now),
    )
