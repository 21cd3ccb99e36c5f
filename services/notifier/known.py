"""The active job handlers, without a look into the documents for every event.

An end of a job always has them read anew: nobody who registered before it is missed, whichever replica he asked.
For all other events a list that is a second old will do; what this replica itself changes, it knows at once.
"""

from collections.abc import Sequence

from gurney import clock
from gurney.model.handler import Handler
from gurney.store import Store
from services.notifier import repository

RECENT_S = 1.0


class KnownHandlers:
    """The list, and how old it is."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._handlers: Sequence[Handler] = ()
        self._read_at: float | None = None

    def changed(self) -> None:
        """Forget the list: a handler was made, changed or removed here."""
        self._read_at = None

    async def recent(self) -> Sequence[Handler]:
        """Return the handlers as they were at most a second ago."""
        if self._read_at is None or clock.monotonic() - self._read_at > RECENT_S:
            return await self.fresh()
        return self._handlers

    async def fresh(self) -> Sequence[Handler]:
        """Return the handlers as they are."""
        begun = clock.monotonic()
        self._handlers = await repository.active(self._store)
        self._read_at = begun
        return self._handlers
