"""The collections `handlers` and `deliveries`, and their queries."""

from datetime import datetime

from gurney.documents.port import Collection, Where
from gurney.errors import NotFound
from gurney.model.access import Caller
from gurney.model.common import Page
from gurney.model.handler import Delivery, DeliveryList, DeliveryState, Handler, HandlerList
from gurney.paging import newest_first, scope_where
from gurney.store import Store
from gurney.tasks import spread

HANDLERS = Collection(
    "handlers",
    Handler,
    (("created_at",), ("state", "created_at"), ("deleting", "created_at")),
    filters=(("project", "created_at"), ("created_by", "created_at")),
)
DELIVERIES = Collection(
    "deliveries",
    Delivery,
    (
        ("created_at",),
        ("handler", "created_at"),
        ("state", "next_attempt_at"),
        ("handler", "state", "next_attempt_at"),
    ),
)

MOST_HANDLERS = 10_000
#: Deliveries that are read at once, and of each handler where more are due; handlers that are asked for at once.
BATCH, SHARE, WIDTH = 256, 128, 8


async def resolve(store: Store, caller: Caller | None, handler: str) -> Handler:
    """Return a handler; raises `NotFound` where there is none for this caller."""
    found = await store.documents.get(HANDLERS, handler)
    if found is None or found.deleting or (caller and not caller.sees(found)):
        raise NotFound(f"there is no job handler {handler}")
    return found


async def active(store: Store) -> list[Handler]:
    return await store.find(HANDLERS, Where("state", "=", "active"), limit=MOST_HANDLERS)


async def page(store: Store, question: HandlerList) -> Page[Handler]:
    where = [*scope_where(*question.caller.scope()), Where("deleting", "=", False)]  # noqa: FBT003
    return await newest_first(
        store.documents, HANDLERS, where, question.limit, question.cursor, slim=lambda each: each.but(secret=None)
    )


async def deliveries_page(store: Store, question: DeliveryList) -> Page[Delivery]:
    where = [Where("handler", "=", question.handler)]
    return await newest_first(store.documents, DELIVERIES, where, question.limit, question.cursor)


async def due(store: Store, now: datetime) -> list[Delivery]:
    """Return deliveries that are due, longest waiting first; of each handler some, however many wait for another."""
    found = await store.find(DELIVERIES, *_due(now), sort=("next_attempt_at", "id"), limit=BATCH)
    if len(found) < BATCH:
        return found
    by_id = {each.id: each for each in found}

    async def add(handler: Handler) -> None:
        by_id.update({each.id: each for each in await due_of(store, handler.id, now)})

    await spread(add, await store.find(HANDLERS, limit=MOST_HANDLERS), WIDTH)
    return list(by_id.values())


async def due_of(store: Store, handler: str, now: datetime) -> list[Delivery]:
    """Return a handler's share of what is due, longest waiting first."""
    where = (Where("handler", "=", handler), *_due(now))
    return await store.find(DELIVERIES, *where, sort=("next_attempt_at", "id"), limit=SHARE)


def _due(now: datetime) -> tuple[Where, Where]:
    return Where("state", "=", DeliveryState.PENDING), Where("next_attempt_at", "<=", now)


async def next_due(store: Store) -> datetime | None:
    """Return when the next delivery is due."""
    pending = Where("state", "=", DeliveryState.PENDING)
    found = await store.find(DELIVERIES, pending, sort=("next_attempt_at", "id"), limit=1)
    return found[0].next_attempt_at if found else None


async def of_handler(store: Store, handler: str) -> list[Delivery]:
    return await store.find(DELIVERIES, Where("handler", "=", handler))


async def old(store: Store, before: datetime) -> list[Delivery]:
    """Return deliveries that are over and older than this."""
    over = Where("state", "!=", DeliveryState.PENDING)
    return await store.find(DELIVERIES, over, Where("created_at", "<", before))


async def deleting(store: Store) -> list[Handler]:
    return await store.find(HANDLERS, Where("deleting", "=", True))  # noqa: FBT003
