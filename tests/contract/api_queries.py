"""Every query of the services, recorded from their repositories: what an adapter must have indexes for."""

from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from gurney.documents.port import Collection, Documents, Query, Where
from gurney.model.access import Caller, Role
from gurney.model.handler import DeliveryList, HandlerList
from gurney.model.job import JobList, JobOwed, JobState
from gurney.model.map import MapList, MapState
from gurney.model.payload import FileList, Payload, PayloadList, PayloadState
from gurney.outbox import Outbox
from gurney.paging import encode_cursor
from gurney.store import Store
from services.edge import repository as edge
from services.job import repository as job
from services.map import repository as map_
from services.notifier import repository as notifier
from services.payload import repository as payload
from services.scheduler import repository as scheduler

AT = datetime(2026, 1, 1, tzinfo=UTC)
COLLECTIONS: tuple[Collection[Any], ...] = (
    edge.TOKENS,
    job.JOBS,
    map_.MAPS,
    notifier.HANDLERS,
    notifier.DELIVERIES,
    *payload.COLLECTIONS,
    scheduler.PLACEMENTS,
    scheduler.NODES,
    scheduler.LEASE,
)


@dataclass
class Recorder:
    """Documents without any document; keeps what it was asked."""

    finds: list[tuple[Collection[Any], Query]] = field(default_factory=list)
    #: Collection, conditions, field that is summed, field that groups.
    totals_asked: list[tuple[Collection[Any], tuple[Where, ...], str | None, str | None]] = field(default_factory=list)

    async def find(self, collection: Collection[Any], query: Query) -> list[Any]:
        self.finds.append((collection, query))
        return []

    async def get_many(self, _: Collection[Any], __: Sequence[str]) -> list[Any]:
        return []

    async def totals(
        self,
        collection: Collection[Any],
        where: Sequence[Where],
        field: str | None = None,
    ) -> tuple[int, int]:
        self.totals_asked.append((collection, tuple(where), field, None))
        return 1, 0

    async def totals_by(
        self,
        collection: Collection[Any],
        by: str,
        where: Sequence[Where],
        field: str | None = None,
    ) -> dict[Any, tuple[int, int]]:
        self.totals_asked.append((collection, tuple(where), field, by))
        return {}


async def recorded() -> Recorder:
    """Ask everything once, lists with each filter alone and all of them together, and their second pages."""
    recorder = Recorder()
    documents = cast("Documents", recorder)
    store = Store(documents, cast("Outbox", None))
    for question in (*_lists(documents, store), *_others(store)):
        await question
    async for _ in job.live(store):
        pass
    async for _ in scheduler.ended_before(store, AT):
        pass
    return recorder


def _lists(documents: Documents, store: Store) -> list[Coroutine[Any, Any, object]]:
    dated: list[dict[str, Any]] = [{"created_after": AT}, {"created_before": AT}, {"labels": (("a", "b"),)}]
    jobs: list[dict[str, Any]] = [
        {"map": "map_" + "0" * 26},
        {"map": "x"},
        {"payload": "x"},
        {"state": JobState.RUNNING},
        {"completed_after": AT},
        {"completed_before": AT},
    ]
    maps: list[dict[str, Any]] = [{"name": "x"}, {"state": MapState.READY}, {"urn": "x"}]
    payloads: list[dict[str, Any]] = [{"name": "x"}, {"state": PayloadState.DRAFT}]
    payload_pages = payload.Repository(store).page
    return [
        *(job.page(store, JobList(**each)) for each in _asked([*dated, *jobs])),
        *(map_.page(store, MapList(**each)) for each in _asked([*dated, *maps])),
        *(payload_pages(PayloadList(**each)) for each in _asked([*dated, *payloads])),
        *(notifier.page(store, HandlerList(**each)) for each in _asked([])),
        *(notifier.deliveries_page(store, DeliveryList(handler="x", **each)) for each in _asked([])),
        *(edge.tokens(documents, 100, each["cursor"]) for each in _asked([])),
    ]


def _asked(filters: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    together = {name: value for each in filters for name, value in each.items()}
    return [
        {"caller": Caller(token="t", subject="s", role=role), "limit": 100, "cursor": cursor} | each
        for role in Role
        for cursor in (None, encode_cursor("2026-01-01T00:00:00.000000Z", "x"))
        for each in ({}, *filters, together)
    ]


def _others(store: Store) -> list[Coroutine[Any, Any, object]]:
    payloads = payload.Repository(store)
    a_payload = Payload(id="x", created_at=AT, updated_at=AT, state=PayloadState.OPEN)
    path = encode_cursor("a/b")
    return [
        *(job.owed(store, JobOwed(kind=kind)) for kind in ("requested", "canceling", "unnotified")),
        job.live_of_map(store, "x"),
        job.live_by_state(store),
        job.owing(store),
        map_.registering(store, map_.MAPS),
        notifier.active(store),
        notifier.due(store, AT),
        notifier.due_of(store, "x", AT),
        notifier.next_due(store),
        notifier.of_handler(store, "x"),
        notifier.old(store, AT),
        notifier.deleting(store),
        payloads.of_job("x"),
        payloads.in_state(PayloadState.OPEN, AT),
        payloads.totals("x"),
        payloads.derived([a_payload]),
        payloads.derived([a_payload, a_payload.but(id="y")]),
        *(payloads.file_page("x", FileList(payload="x", prefix=p, cursor=c)) for p in ("", "a/") for c in (None, path)),
        payloads.some_files("x"),
        payloads.unsettled(AT, None),
        payloads.unsettled(AT, ("2026-01-01T00:00:00.000000Z", "x")),
        payloads.changing("x"),
        payloads.clashes("x", ["a/b"]),
        payloads.holding("x"),
        payloads.claimed("x"),
        payloads.claims_of("x"),
        payloads.held_before(AT, None),
        payloads.held_before(AT, ("2026-01-01T00:00:00.000000Z", "x")),
        scheduler.live(store),
        scheduler.nodes(store),
    ]
