"""The active job handlers, without a look into the documents for every event.

What this replica changes, it knows at once, and tells the others before it answers; should that be lost, a list is a
second old at most. Of several replicas each reads them anew for an end of a job: nobody who registered before it is
missed, whichever replica he asked.
"""

import math
from collections.abc import Sequence

from gurney import clock
from gurney.model.handler import Handler
from gurney.store import Store
from services.notifier import repository

RECENT_S = 1.0


class KnownHandlers:
    """The list, and how old it is. `alone`: no other replica changes handlers."""

    def __init__(self, store: Store, *, alone: bool) -> None:
        self._store = store
        self._alone = alone
        self._handlers: Sequence[Handler] = ()
        self._read_at = -math.inf
        self._changed_at = 0.0

    def changed(self) -> None:
        """Forget the list: a handler was made, changed or removed."""
        self._changed_at = clock.monotonic()

    async def recent(self) -> Sequence[Handler]:
        """Return the handlers as they were at most a second ago."""
        if self._read_at > max(self._changed_at, clock.monotonic() - RECENT_S):
            return self._handlers
        return await self._read()

    async def fresh(self) -> Sequence[Handler]:
        """Return all handlers that were registered before this is called."""
        return await (self.recent() if self._alone else self._read())

    async def _read(self) -> Sequence[Handler]:
        begun = clock.monotonic()
        handlers = await repository.active(self._store)
        self._handlers, self._read_at = handlers, begun
        return handlers
