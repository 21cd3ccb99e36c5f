"""Documents in MongoDB: writes leave in rounds, and whose answer was lost is found by its mark.

Nothing is cached: other processes write, too. Writes are answered once a majority has them in its journal; reads ask
the primary for what a majority has, so they are at least as new as any answered write. (A primary that was cut off may
read what was true some seconds ago; its writes fail.) No transactions: events and unique keys lie in the document.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any

from gurney import clock, ids
from gurney.documents.mongo_link import BOUNDS, Bounds, Json, Link
from gurney.documents.mongo_pump import Lookups, Pump
from gurney.documents.mongo_query import THERE, find_of, indexes_of, totals_of
from gurney.documents.mongo_rounds import Rounds, Sent
from gurney.documents.mongo_write import in_order, settle_of
from gurney.documents.port import Collection, D, Query, Where, Write
from gurney.errors import GurneyError, StoreUnavailable, TooLarge
from gurney.model.base import Document
from gurney.model.event import Event

LAZY_SETTLE_S = 0.2
#: Tombstones stay for longer than anybody tries again.
TOMBSTONE_S = 60.0
#: MongoDB's bound is 16 MiB, events and fields included.
MOST_BYTES = 15 * 1024**2
REMEMBERED_EVENTS = 100_000
UNPUBLISHED = 1000


class _Lane:
    """What one collection has under way."""

    def __init__(self, documents: "MongoDocuments", link: Link, collection: Collection[Any]) -> None:
        self.pump: Pump[Sent] = Pump(Rounds(link, collection.name).carry)
        self.by_id: Lookups[Document] = Lookups(lambda ids: documents.by_ids(collection, ids))
        self.by_key: Lookups[Document] = Lookups(lambda keys: documents.by_keys(collection, keys))
        #: The document of each event that is not settled; the oldest are forgotten first, and found again by a sweep.
        self.events: OrderedDict[str, str] = OrderedDict()
        self.settled: list[str] = []

    def remember(self, event_id: str, document_id: str) -> None:
        self.events[event_id] = document_id
        if len(self.events) > REMEMBERED_EVENTS:
            self.events.popitem(last=False)

    def settling(self) -> list[Json]:
        """Return what forgets the events that are settled: a statement for each document."""
        settled, self.settled = self.settled, []
        by_document: dict[str, list[str]] = {}
        for event_id in settled:
            if document_id := self.events.pop(event_id, None):
                by_document.setdefault(document_id, []).append(event_id)
        return [settle_of(document_id, events) for document_id, events in by_document.items()]


class MongoDocuments:
    """The adapter. `url` may hold credentials; no message tells them."""

    def __init__(self, url: str, database: str = "gurney", bounds: Bounds = BOUNDS) -> None:
        self.database = database
        self._link = Link(url, database, bounds)
        self._lanes: dict[str, _Lane] = {}
        #: Unlike those of any other process.
        self._mark = f"{ids.new_secret()[:10]}."
        self._numbers = count()
        self._stamp = 0.0
        self._settling: asyncio.Task[None] | None = None

    # --- life ---

    async def open(self, collections: Iterable[Collection[Any]]) -> None:
        await self._link.connect()
        for collection in collections:
            await self._link.make_indexes(collection.name, indexes_of(collection))
            self._lane(collection)

    async def close(self) -> None:
        await asyncio.gather(*(lane.pump.drained() for lane in self._lanes.values()))
        if self._settling:
            self._settling.cancel()
            await asyncio.gather(self._settling, return_exceptions=True)
        await asyncio.gather(*(self._settle(name) for name in self._lanes))
        await self._link.close()

    def _lane(self, collection: Collection[Any]) -> _Lane:
        lane = self._lanes.get(collection.name)
        if lane is None:
            lane = self._lanes[collection.name] = _Lane(self, self._link, collection)
        return lane

    # --- reads ---

    async def get(self, collection: Collection[D], id: str) -> D | None:  # noqa: A002
        return await self._lane(collection).by_id.ask(id)  # type: ignore[return-value]  # a lane has one model

    async def get_many(self, collection: Collection[D], ids: Sequence[str]) -> list[D]:
        return list((await self.by_ids(collection, ids)).values()) if ids else []  # type: ignore[arg-type]

    async def by_key(self, collection: Collection[D], key: str) -> D | None:
        return await self._lane(collection).by_key.ask(key)  # type: ignore[return-value]

    async def by_ids(self, collection: Collection[Any], ids: Sequence[str]) -> dict[str, Document]:
        """Return documents by id."""
        found = await self._link.find(collection.name, {"_id": {"$in": list(ids)}, **THERE}, ("body",))
        return {each["_id"]: collection.model.decode(each["body"]) for each in found}

    async def by_keys(self, collection: Collection[Any], keys: Sequence[str]) -> dict[str, Document]:
        """Return documents by each key they hold."""
        found = await self._link.find(collection.name, {"keys": {"$in": list(keys)}, **THERE}, ("body", "keys"))
        decoded = [(each["keys"], collection.model.decode(each["body"])) for each in found]
        return {key: document for held, document in decoded for key in held}

    async def find(self, collection: Collection[D], query: Query) -> list[D]:
        wanted, sort = find_of(collection, query)
        found = await self._link.find(collection.name, wanted, ("body",), sort=sort, limit=query.limit)
        return [collection.model.decode(each["body"]) for each in found]

    async def totals(
        self, collection: Collection[D], where: Sequence[Where], field: str | None = None
    ) -> tuple[int, int]:
        found = await self._link.aggregate(collection.name, totals_of(collection, where, field))
        return (int(found[0]["count"]), int(found[0]["sum"])) if found else (0, 0)

    async def totals_by(
        self, collection: Collection[D], by: str, where: Sequence[Where], field: str | None = None
    ) -> dict[Any, tuple[int, int]]:
        found = await self._link.aggregate(collection.name, totals_of(collection, where, field, by))
        return {each["_id"]: (int(each["count"]), int(each["sum"])) for each in found}

    # --- writes ---

    async def cas(self, writes: Sequence[Write]) -> list[GurneyError | None]:
        results: list[GurneyError | None] = [None] * len(writes)
        parts: dict[str, list[tuple[int, Sent]]] = {}
        for place, write in enumerate(writes):
            sent = self._sent(write)
            if sent.size > MOST_BYTES:
                results[place] = TooLarge(f"{write.collection.name} {write.id} has {sent.size} bytes")
            else:
                parts.setdefault(write.collection.name, []).append((place, sent))
        await asyncio.gather(*(self._write(part, results) for part in parts.values()))
        return results

    def _sent(self, write: Write) -> Sent:
        body = write.document.model_dump_json() if write.document else None
        self._stamp = max(self._stamp + 1e-6, clock.now().timestamp())
        return Sent(write, body, f"{self._mark}{next(self._numbers):x}", self._stamp, inserts=write.expected == 0)

    async def _write(self, part: Sequence[tuple[int, Sent]], results: list[GurneyError | None]) -> None:
        lane = self._lane(part[0][1].write.collection)
        faults = await lane.pump.write([sent for _, sent in part])
        for (place, sent), fault in zip(part, faults, strict=True):
            results[place] = fault
            for event in sent.write.events if fault is None else ():
                lane.remember(event.id, sent.id)

    # --- events ---

    async def unpublished(self, collection: Collection[Any], older_than_s: float) -> list[Event]:
        await self._settle(collection.name)
        if older_than_s:  # a sweep
            await self._reap(collection.name)
        before = max(clock.now().timestamp(), self._stamp) - older_than_s
        wanted = {"events.at": {"$lte": before}}
        # In the order of that index:
        found = await self._link.find(collection.name, wanted, ("events",), hint="events", limit=UNPUBLISHED)
        for each in found:
            for event in each["events"]:
                self._lane(collection).remember(event["id"], each["_id"])
        return in_order(found, before, cut=len(found) == UNPUBLISHED)[:UNPUBLISHED]

    async def settle(self, collection: Collection[Any], event_ids: Sequence[str]) -> None:
        self._lane(collection).settled.extend(event_ids)
        if self._settling is None or self._settling.done():
            self._settling = asyncio.get_running_loop().create_task(self._settle_soon())

    async def _settle_soon(self) -> None:
        while any(lane.settled for lane in self._lanes.values()):
            await asyncio.sleep(LAZY_SETTLE_S)  # a job's events end together
            await asyncio.gather(*(self._settle(name) for name in self._lanes))

    async def _settle(self, name: str) -> None:
        """Forget what is settled; what cannot be forgotten now is published again, under the same ids."""
        lane = self._lanes.get(name)
        statements = lane.settling() if lane else []
        try:
            await self._link.write("update", name, statements)
        except StoreUnavailable:
            return

    async def _reap(self, name: str) -> None:
        """Remove old tombstones."""
        old = {"gone": {"$lt": clock.now().timestamp() - TOMBSTONE_S}, "revision": 0, "events.0": {"$exists": False}}
        await self._link.write("delete", name, [{"q": old, "limit": 0}])
