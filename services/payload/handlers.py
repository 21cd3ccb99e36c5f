"""Payloads: create, read, list, rename, delete."""

from collections.abc import Sequence

from gurney.errors import KeyTaken, NameTaken
from gurney.ids import new_id
from gurney.model.common import Empty, Page, Ref, Rename
from gurney.model.event import Event
from gurney.model.payload import Payload, PayloadCreate, PayloadList
from gurney.paths import check_name
from services.payload import machine, policy
from services.payload.desk import Desk
from services.payload.effects import payload_event
from services.payload.repository import PAYLOADS


class PayloadHandlers:
    """Answers about payloads as a whole."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create(self, asked: PayloadCreate) -> Payload:
        name = check_name(asked.body.name) if asked.body.name is not None else None
        payload = machine.created(asked.id or new_id("pay"), name, asked, self._desk.now())
        event = payload_event("created", payload, payload.created_at)
        try:
            return await self._desk.store.insert(PAYLOADS, payload, event)
        except KeyTaken as taken:
            before = await self._made_before(asked)
            if before is None:
                raise _name_taken(payload.project, name) from taken
            return before

    async def _made_before(self, asked: PayloadCreate) -> Payload | None:
        """Return what the same request made when it came before, as it is now."""
        if asked.idempotency is None:
            return None
        holder = await self._desk.repository.payload_by_key(f"idempotency:{asked.idempotency.key}")
        if holder is None or holder.idempotency is None:
            return None
        holder.repeated(asked.idempotency)
        return await self._derived(holder)

    async def get(self, asked: Ref) -> Payload:
        return await self._derived(await self._desk.access.payload(asked.caller, asked.ref))

    async def list(self, asked: PayloadList) -> Page[Payload]:
        return await self._desk.repository.page(asked)

    async def rename(self, asked: Rename) -> Payload:
        name = check_name(asked.name) if asked.name is not None else None
        payload = await self._desk.access.open_payload(asked.caller, asked.ref)

        def renamed(payload: Payload) -> tuple[Payload, Sequence[Event]] | None:
            policy.require_visible(payload)
            if payload.name == name:
                return None
            now = self._desk.now()
            after = payload.next(name=name, updated_at=now)
            return after, [payload_event("changed", after, now)]

        try:
            return await self._derived(await self._desk.store.update(PAYLOADS, payload.id, renamed))
        except KeyTaken as taken:
            raise _name_taken(payload.project, name) from taken

    async def delete(self, asked: Ref) -> Empty:
        payload = await self._desk.access.open_payload(asked.caller, asked.ref)
        await self._desk.deletion.delete(payload.id)
        return Empty()

    async def _derived(self, payload: Payload) -> Payload:
        return (await self._desk.repository.derived([payload]))[0]


def _name_taken(project: str, name: str | None) -> NameTaken:
    return NameTaken(f"a payload of project {project} is named {name} already")
