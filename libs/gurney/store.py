"""What an owner writes with: documents by compare-and-set, their events handed to the outbox once they are stored."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from gurney.documents.port import Collection, D, Documents, Query, Where, Write
from gurney.errors import GurneyError, NotFound, RevisionConflict
from gurney.model.event import Event
from gurney.outbox import Outbox

T = TypeVar("T")

#: What a change makes of a document: its next revision and the events that tell of it; None: leave it.
Change = Callable[[D], tuple[D, Sequence[Event]] | None]


class Store:
    """One per service. Without an outbox, documents have no events."""

    def __init__(self, documents: Documents, outbox: Outbox | None, guard: Callable[[], None] = lambda: None) -> None:
        self.documents = documents
        self._outbox = outbox
        self._guard = guard

    def guarded(self, guard: Callable[[], None]) -> "Store":
        """Return the same store for somebody who may write only as long as `guard` does not raise."""
        return Store(self.documents, self._outbox, guard)

    async def get(self, collection: Collection[D], id: str) -> D:  # noqa: A002
        """Return the document; raises `NotFound`."""
        found = await self.documents.get(collection, id)
        if found is None:
            raise NotFound(f"{collection.name}: there is no {id}")
        return found

    async def find(
        self,
        collection: Collection[D],
        *where: Where,
        sort: tuple[str, ...] = ("created_at", "id"),
        descending: bool = False,
        limit: int = 256,
    ) -> list[D]:
        """Return up to `limit` documents, oldest first unless told otherwise."""
        return await self.documents.find(collection, Query(where, sort, descending, limit))

    async def write(self, *writes: Write) -> list[GurneyError | None]:
        """Try writes, each on its own; hand the events of those that held to the outbox."""
        self._guard()
        results = await self.documents.cas(writes)
        for write, fault in zip(writes, results, strict=True):
            if fault is None and write.events and self._outbox:
                self._outbox.push(write.collection, write.events)
        return results

    async def insert(self, collection: Collection[D], document: D, *events: Event) -> D:
        """Store a new document; raises `RevisionConflict` where the id exists, `KeyTaken`."""
        await self._one(Write(collection, document.id, 0, document, events))
        return document

    async def replace(self, collection: Collection[D], document: D, *events: Event) -> D:
        """Store a document's next revision; raises `RevisionConflict`, `KeyTaken`."""
        await self._one(Write(collection, document.id, document.revision - 1, document, events))
        return document

    async def remove(self, collection: Collection[D], document: D) -> None:
        """Remove a document that is still at this revision; raises `RevisionConflict`."""
        await self._one(Write(collection, document.id, document.revision, None))

    async def update(self, collection: Collection[D], id: str, change: Change[D]) -> D:  # noqa: A002
        """Read, decide, compare-and-set; again when somebody was quicker. Returns the document as it is then."""
        while True:
            document = await self.get(collection, id)
            changed = change(document)
            if changed is None:
                return document
            after, events = changed
            try:
                return await self.replace(collection, after, *events)
            except RevisionConflict:
                continue

    async def _one(self, write: Write) -> None:
        (fault,) = await self.write(write)
        if fault:
            raise fault
