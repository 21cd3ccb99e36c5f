"""Messages of the MAP service: message -> decide -> store -> effects."""

import asyncio
import contextlib
from datetime import datetime, timedelta

from gurney import clock, ids
from gurney.documents.port import Where
from gurney.errors import KeyTaken, MapInUse, NameTaken, RevisionConflict
from gurney.model.common import Digests, Empty, Page, Ref, Rename
from gurney.model.event import Event
from gurney.model.job import MapJobs
from gurney.model.map import AskedContent, InspectReport, Map, MapList, MapRefs, MapRegister, MapsAlive, MapState
from gurney.paths import check_name
from gurney.service import Service
from gurney.subjects import JOB_LIVE, JOB_NEEDED
from services.map import effects, machine, repository, supplied, urn
from services.map.contents import Contents
from services.map.inspections import Inspections
from services.map.repository import MAPS, TRIALS

#: Seconds that a dry run waits for a node to have read the MAP.
TRIAL_S = 8.0


class Handlers:
    """Everything that the service is asked and told."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._bus = service.bus
        self._store = service.store
        self._inspections = Inspections(service, MAPS, _outcome)
        self._contents = Contents(self._bus)
        self._trials = Inspections(service, TRIALS, lambda _, __: ())

    # --- questions ---

    async def register(self, question: MapRegister) -> Map:
        if question.dry_run:
            return await self._try(question)
        document = _new_map(question, clock.now())
        if (asked := _asked_content(document)) is not None:
            document = document.but(content=await self._contents.hold(question.caller, asked, document.id))
        event = effects.told("registered", document, document.created_at)
        try:
            await self._store.insert(MAPS, document, event)
        except KeyTaken as taken:
            await self._contents.release(document)
            return await self._taken(question, taken)
        self._inspections.soon(document)
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

    async def approve(self, question: Ref) -> Map:
        found = await repository.resolve(self._store, question.caller, question.ref)
        by = question.caller.subject if question.caller else "gurney"
        now = clock.now()

        def change(document: Map) -> tuple[Map, list[Event]] | None:
            after = machine.approved(document, by, now)
            return (after, [effects.told("approved", after, now)]) if after else None

        return await self._store.update(MAPS, found.id, change)

    async def unregister(self, question: Ref) -> Empty:
        found = await repository.resolve(self._store, question.caller, question.ref)
        live = await self._bus.request(JOB_LIVE, MapJobs(map=found.id))
        if live.count:
            raise MapInUse(f"{live.count} jobs of {found.id} are live: {', '.join(live.jobs)}")
        now = clock.now()

        def change(document: Map) -> tuple[Map, list[Event]] | None:
            after = machine.unregistered(document)
            return (after, [effects.told("unregistered", after, now)]) if after else None

        await self._contents.release(await self._store.update(MAPS, found.id, change))
        return Empty()

    async def alive(self, question: MapRefs) -> MapsAlive:
        found = await self._store.documents.get_many(MAPS, question.maps)
        return MapsAlive(live=tuple(each.id for each in found if machine.may_run(each)))

    async def needed(self, question: Digests) -> Digests:
        """Answer which copies a node has to keep: of MAPs that may run, and of live jobs whatever their MAPs are."""
        found = await repository.needed(self._store, question.digests)
        if left := sorted(set(question.digests) - found):
            found |= set((await self._bus.request(JOB_NEEDED, Digests(digests=tuple(left)))).digests)
        return Digests(digests=tuple(sorted(found)))

    # --- inspections ---

    async def reported(self, subject: str, data: bytes) -> None:
        """Fold a node's report in."""
        del subject
        report = InspectReport.decode(data)
        await self._inspections.reported(report)
        await self._trials.reported(report)

    async def reconcile(self) -> None:
        await self._inspections.reconcile()
        await self._trials.reconcile()
        await self._end_trials()

    async def _try(self, question: MapRegister) -> Map:
        """Return what a registration would come to; nothing of it stays."""
        trial = _new_map(question, clock.now())
        for key in trial.unique_keys():
            if taken := await self._store.documents.by_key(MAPS, key):
                raise NameTaken(f"the name {trial.name} is that of {taken.id}")
        if (asked := _asked_content(trial)) is not None:
            trial = trial.but(content=await self._contents.look(question.caller, asked))
        await self._store.insert(TRIALS, trial.but(name=None))  # others may try the same name
        try:
            await self._trials.ask(trial)
            return (await self._trials.settled(trial.id, TRIAL_S)).but(id="", name=trial.name)
        finally:
            await asyncio.shield(self._end_trial(trial.id))

    async def _end_trials(self) -> None:
        """Remove what a killed replica was trying."""
        for trial in await self._store.find(
            TRIALS, Where("created_at", "<", clock.now() - 2 * timedelta(seconds=TRIAL_S))
        ):
            await self._end_trial(trial.id)

    async def _end_trial(self, map_id: str) -> None:
        while trial := await self._store.documents.get(TRIALS, map_id):
            with contextlib.suppress(RevisionConflict):
                await self._store.remove(TRIALS, trial)

    async def _taken(self, question: MapRegister, taken: KeyTaken) -> Map:
        """Answer a repeated request with its first result, or say what is taken."""
        if not taken.key.startswith("idempotency:") or question.idempotency is None:
            raise NameTaken(f"the name {question.body.name} is that of {taken.holder}") from taken
        return (await self._store.get(MAPS, taken.holder)).repeated(question.idempotency)


def _outcome(document: Map, now: datetime) -> list[Event]:
    """Return what tells of the end of an inspection, if it has ended."""
    ended = document.state in {MapState.READY, MapState.INVALID}
    return [effects.told(document.state.value, document, now)] if ended else []


def _asked_content(document: Map) -> AskedContent | None:
    return document.supplied.content if document.supplied else None


def _new_map(question: MapRegister, now: datetime) -> Map:
    body, caller = question.body, question.caller
    supplied.check(body.description, body.hardening)
    return Map(
        id=ids.new_id("map"),
        project=caller.project,
        created_by=caller.subject,
        created_at=now,
        idempotency=question.idempotency,
        name=None if body.name is None else check_name(body.name),
        urn=urn.normalise(body.urn),
        state=MapState.REGISTERING,
        labels=body.labels,
        supplied=body.description,
        hardening=body.hardening,
        gpu_sharing=body.gpu_sharing,
        inspecting=machine.first_inspection(ids.new_id("ins"), now),
    )
