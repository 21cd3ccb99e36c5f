"""Payloads: create, read, list, rename, delete."""

from collections.abc import Sequence

from gurney.errors import KeyTaken, NameTaken
from gurney.ids import new_id
from gurney.model.common import Empty, Page, Ref, Rename
from gurney.model.event import Event
from gurney.model.payload import Payload, PayloadCreate, PayloadList, PayloadState
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
        if payload.state is PayloadState.FILLING:
            return await self._fill(payload)
        event = payload_event("created", payload, payload.created_at)
        try:
            return await self._desk.store.insert(PAYLOADS, payload, event)
        except KeyTaken as taken:
            return await self._made_before(payload, taken)

    async def _fill(self, payload: Payload) -> Payload:
        """Store a payload that is to be filled; its keys are looked at once more when it is opened."""
        for key in machine.keys_when_open(payload):
            holder = await self._desk.repository.payload_by_key(key)
            if holder is not None:
                return await self._made_before(payload, KeyTaken(key, holder.id))
        return await self._desk.store.insert(PAYLOADS, payload)

    async def _made_before(self, payload: Payload, taken: KeyTaken) -> Payload:
        """Return what the same request made when it came before, as it is now; raises `NameTaken` if it did not."""
        if payload.idempotency is not None:
            holder = await self._desk.repository.payload_by_key(f"idempotency:{payload.idempotency.key}")
            if holder is not None:
                return await self._derived(holder.repeated(payload.idempotency))
        raise _name_taken(payload.project, payload.name) from taken

    async def open(self, asked: Ref) -> Payload:
        """Show a payload that was filled. Where the same request was quicker, its payload is the answer."""
        payload = await self._desk.access.reached(asked.caller, asked.ref)

        def opened(payload: Payload) -> tuple[Payload, Sequence[Event]] | None:
            after = machine.opened(payload, self._desk.now())
            return None if after is payload else (after, [payload_event("created", after, after.created_at)])

        try:
            return await self._derived(await self._desk.store.update(PAYLOADS, payload.id, opened))
        except KeyTaken as taken:
            await self._desk.deletion.doom(payload)
            return await self._made_before(payload, taken)

    async def discard(self, asked: Ref) -> Empty:
        """Give a payload up that is being filled; one that was opened stays."""
        payload = await self._desk.access.reached(asked.caller, asked.ref)
        if payload.state is PayloadState.FILLING:
            await self._desk.deletion.doom(payload)
            await self._desk.deletion.finish_transient(payload)
        return Empty()

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
        await self._desk.deletion.finish_transient(payload)
        return Empty()

    async def _derived(self, payload: Payload) -> Payload:
        return (await self._desk.repository.derived([payload]))[0]


def _name_taken(project: str, name: str | None) -> NameTaken:
    return NameTaken(f"a payload of project {project} is named {name} already")
