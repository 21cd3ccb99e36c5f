"""Questions to the notifier: job handlers and their deliveries."""

import base64
import contextlib
import secrets
from datetime import datetime, timedelta

from gurney import clock, ids
from gurney.bus import Bus
from gurney.errors import Invalid, KeyTaken, NotFound, RevisionConflict
from gurney.model.common import Empty, Page, Ref
from gurney.model.handler import (
    Delivery,
    DeliveryList,
    DeliveryState,
    Handler,
    HandlerCreate,
    HandlerList,
    HandlerPatch,
    HandlersExist,
)
from gurney.model.handler import WebhookBody as Body
from gurney.service import Service
from gurney.settings import Settings
from gurney.subjects import JOB_EVENTS, MAP_GET, NOTIFIER_HANDLERS
from services.notifier import policy, repository
from services.notifier.known import KnownHandlers
from services.notifier.lanes import Lanes
from services.notifier.repository import DELIVERIES, HANDLERS
from services.notifier.targets import check_url

EVENTS = frozenset(f"job.{event}" for event in JOB_EVENTS)
#: How long a delivery that is over is kept.
KEPT = timedelta(days=7)


class Handlers:
    """Everything that the service is asked."""

    def __init__(self, service: Service, lanes: Lanes, known: KnownHandlers, settings: Settings) -> None:
        self._known = known
        self._bus: Bus = service.bus
        self._store = service.store
        self._lanes = lanes
        self._policy = settings.webhook_private

    async def create(self, question: HandlerCreate) -> Handler:
        body, caller = question.body, question.caller
        handler = Handler(
            id=ids.new_id("hdl"),
            project=caller.project,
            created_by=caller.subject,
            created_at=clock.now(),
            idempotency=question.idempotency,
            url=check_url(body.url, self._policy),
            events=_events(body.events),
            map=await self._map_id(question),
            labels=body.labels,
            secret=f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}",
        )
        try:
            await self._store.insert(HANDLERS, handler)
        except KeyTaken as taken:
            return await self._replayed(question, taken)
        await self._changed()
        return handler

    async def _changed(self) -> None:
        """Have this replica and the others read the handlers again, before whoever changed them hears of it."""
        self._known.changed()
        await self._bus.tell_peers(NOTIFIER_HANDLERS)

    async def get(self, question: Ref) -> Handler:
        return (await repository.resolve(self._store, question.caller, question.ref)).but(secret=None)

    async def page(self, question: HandlerList) -> Page[Handler]:
        return await repository.page(self._store, question)

    async def patch(self, question: HandlerPatch) -> Handler:
        found = await repository.resolve(self._store, question.caller, question.handler)
        changes = question.body.model_dump(exclude_none=True)
        if question.body.events is not None:
            changes["events"] = _events(question.body.events)
        now = clock.now()

        def change(document: Handler) -> tuple[Handler, tuple[()]]:
            enabled = document.state == "disabled" and changes.get("state") == "active"
            return document.next(**changes, enabled_at=now if enabled else document.enabled_at), ()

        after = await self._store.update(HANDLERS, found.id, change)
        await self._changed()
        return after.but(secret=None)

    async def delete(self, question: Ref) -> Empty:
        found = await repository.resolve(self._store, question.caller, question.ref)
        marked = await self._store.update(
            HANDLERS,
            found.id,
            lambda document: None if document.deleting else (document.next(deleting=True, state="disabled"), ()),
        )
        await self._changed()
        await self._finish_delete(marked)
        return Empty()

    async def test(self, question: Ref) -> Delivery:
        """Send an event `handler.test` now; the delivery tells how it goes."""
        handler = await repository.resolve(self._store, question.caller, question.ref)
        now = clock.now()
        delivery = Delivery(
            id=ids.new_id("dlv"),
            event=ids.new_id("evt"),
            handler=handler.id,
            state=DeliveryState.PENDING,
            created_at=now,
            next_attempt_at=now,
            body=Body(type=policy.TEST, timestamp=now, data={"handler": handler.id}).model_dump_json(),
            taken_until=now + timedelta(seconds=policy.TAKEN_S),
        )
        await self._store.insert(DELIVERIES, delivery)
        self._lanes.hand([delivery])
        return delivery

    async def deliveries(self, question: DeliveryList) -> Page[Delivery]:
        await repository.resolve(self._store, question.caller, question.handler)
        return await repository.deliveries_page(self._store, question)

    async def exist(self, question: HandlersExist) -> Empty:
        for handler in question.handlers:
            try:
                await repository.resolve(self._store, question.caller, handler)
            except NotFound as error:
                raise Invalid.field("handlers", str(error)) from error
        return Empty()

    async def tidy(self) -> None:
        """Finish deletions that a crash cut off; forget deliveries that are over and old."""
        for handler in await repository.deleting(self._store):
            await self._finish_delete(handler)
        before: datetime = clock.now() - KEPT
        while old := await repository.old(self._store, before):
            for delivery in old:
                await self._remove(delivery)

    async def _finish_delete(self, handler: Handler) -> None:
        while left := await repository.of_handler(self._store, handler.id):
            for delivery in left:
                await self._remove(delivery)
        with contextlib.suppress(RevisionConflict):  # another replica was quicker
            await self._store.remove(HANDLERS, handler)

    async def _remove(self, delivery: Delivery) -> None:
        with contextlib.suppress(RevisionConflict):  # somebody has changed it meanwhile: the next look finds it
            await self._store.remove(DELIVERIES, delivery)

    async def _map_id(self, question: HandlerCreate) -> str | None:
        if question.body.map is None:
            return None
        return (await self._bus.request(MAP_GET, Ref(caller=question.caller, ref=question.body.map))).id

    async def _replayed(self, question: HandlerCreate, taken: KeyTaken) -> Handler:
        holder = await self._store.get(HANDLERS, taken.holder)
        return holder.repeated(question.idempotency).but(secret=None)


def _events(events: tuple[str, ...]) -> tuple[str, ...]:
    for event in events:
        if event not in EVENTS:
            raise Invalid.field("events", f"{event!r} is none of {', '.join(sorted(EVENTS))}")
    return tuple(dict.fromkeys(events))
