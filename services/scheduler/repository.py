"""The collections `placements`, `nodes`, `lease`, `project_pasts` and `run_times`, and their queries."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import TypeVar

from gurney.documents.port import Collection, Query, Where
from gurney.model.base import Document
from gurney.model.run import LIVE_PLACEMENTS, Leadership, Node, Placement, ProjectPast, RunTimes
from gurney.store import Store

D = TypeVar("D", bound=Document)

PLACEMENTS = Collection("placements", Placement, (("state",), ("ended_at",)), fields=("epoch",))
NODES = Collection("nodes", Node)
LEASE = Collection("lease", Leadership)
PROJECT_PASTS = Collection("project_pasts", ProjectPast)
RUN_TIMES = Collection("run_times", RunTimes)

BATCH = 256


async def live(store: Store, *, before: int | None = None) -> list[Placement]:
    """Return every live placement; `before`: those of an older leadership only."""
    where: tuple[Where, ...] = (Where("state", "in", sorted(LIVE_PLACEMENTS)),)
    if before is not None:
        where += (Where("epoch", "<", before),)
    return [each async for batch in _batches(store, PLACEMENTS, where, ("id",)) for each in batch]


async def nodes(store: Store) -> list[Node]:
    """Return every known node."""
    return [each async for batch in _batches(store, NODES, (), ("id",)) for each in batch]


async def project_pasts(store: Store) -> list[ProjectPast]:
    """Return what projects have had, as it was last written."""
    return [each async for batch in _batches(store, PROJECT_PASTS, (), ("id",)) for each in batch]


async def run_times(store: Store) -> list[RunTimes]:
    """Return how long runs of MAPs took, as it was last written."""
    return [each async for batch in _batches(store, RUN_TIMES, (), ("id",)) for each in batch]


async def ended_before(store: Store, at: datetime) -> AsyncIterator[list[Placement]]:
    """Yield the placements that ended before `at`, oldest first, in batches; they may be removed meanwhile."""
    async for batch in _batches(store, PLACEMENTS, (Where("ended_at", "<", at),), ("ended_at", "id")):
        yield batch


async def _batches(
    store: Store, collection: Collection[D], where: tuple[Where, ...], sort: tuple[str, ...]
) -> AsyncIterator[list[D]]:
    after: tuple[str, ...] | None = None
    while True:
        found = await store.documents.find(collection, Query(where, sort, descending=False, limit=BATCH, after=after))
        if found:
            yield found
        if len(found) < BATCH:
            return
        after = tuple(getattr(found[-1], field) for field in sort)
