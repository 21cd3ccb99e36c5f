"""When the notifier looks into the documents, and when it need not."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from gurney.documents.port import Collection, D, Query, Write
from gurney.documents.sqlite import SqliteDocuments
from gurney.errors import GurneyError
from gurney.model.handler import Handler
from gurney.model.job import JobEvent
from gurney.service import Service
from gurney.settings import Settings
from gurney.store import Store
from gurney.testing.samples import sample
from services.notifier import known
from services.notifier.known import KnownHandlers
from services.notifier.lanes import Lanes
from services.notifier.repository import HANDLERS
from services.notifier.sender import Sender
from services.notifier.telling import Telling


class Watched(SqliteDocuments):
    """Counts looks and writes, and holds the answers to looks back while `answer` is clear."""

    looks = 0
    writes = 0

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.answer = asyncio.Event()
        self.answer.set()

    async def find(self, collection: Collection[D], query: Query) -> list[D]:
        found = await super().find(collection, query)
        self.looks += 1
        await self.answer.wait()
        return found

    async def cas(self, writes: Sequence[Write]) -> list[GurneyError | None]:
        self.writes += 1
        return await super().cas(writes)


@pytest.fixture
async def documents(tmp_path: Path) -> AsyncIterator[Watched]:
    """A database without handlers."""
    watched = Watched(tmp_path / "documents.sqlite")
    await watched.open([HANDLERS])
    yield watched
    await watched.close()


@pytest.fixture
def service(documents: Watched, tmp_path: Path) -> Service:
    """A notifier that is not entered: it writes and sends nothing."""
    return Service("notifier", Settings(data=tmp_path), documents, [HANDLERS])


@pytest.fixture
def store(service: Service) -> Store:
    return service.store


@pytest.fixture(autouse=True)
def _long_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "RECENT_S", 1000.0)


async def add(store: Store) -> Handler:
    return await store.insert(HANDLERS, sample(Handler).but(state="active", deleting=False))


async def test_who_is_alone_looks_once_until_something_changes(documents: Watched, store: Store) -> None:
    """Where no other replica changes handlers, an end of a job costs no look; a change here is known at once."""
    handlers = KnownHandlers(store, alone=True)
    assert [await handlers.fresh() for _ in range(3)] == [[], [], []]
    assert documents.looks == 1
    added = await add(store)
    handlers.changed()
    assert [await handlers.fresh() for _ in range(3)] == [[added]] * 3
    assert documents.looks == 2


async def test_one_of_several_looks_at_each_end_of_a_job(store: Store) -> None:
    """What another replica has registered is known before the next end of a job is told."""
    handlers = KnownHandlers(store, alone=False)
    assert await handlers.fresh() == []
    added = await add(store)
    assert await handlers.fresh() == [added]


async def test_a_change_during_a_look_is_not_forgotten(documents: Watched, store: Store) -> None:
    """A list that was read before a change, and comes after it, is not kept."""
    handlers = KnownHandlers(store, alone=True)
    documents.answer.clear()
    looking = asyncio.create_task(handlers.recent())
    while not documents.looks:
        await asyncio.sleep(0)
    added = await add(store)
    handlers.changed()
    documents.answer.set()
    await looking
    assert await handlers.recent() == [added]


async def test_a_defect_leaves_nobody_waiting(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong while an event is told, its consumer hears of it, and the next event is told."""
    handlers = KnownHandlers(service.store, alone=True)
    lanes = Lanes(service.store, Sender(service.settings), handlers, service.settings, alone=True)
    telling = Telling(service.bus, service.store, lanes, handlers)
    event = sample(JobEvent).but(event="succeeded")
    faults: list[Exception] = [RuntimeError("a defect")]

    async def tell(_: Sequence[JobEvent]) -> None:
        if faults:
            raise faults.pop()

    monkeypatch.setattr(telling, "tell", tell)
    running = asyncio.create_task(telling.run())
    try:
        async with asyncio.timeout(20):
            with pytest.raises(RuntimeError, match="a defect"):
                await telling.heard("job.succeeded.x", event.encode())
            await telling.heard("job.succeeded.x", event.encode())
    finally:
        running.cancel()


async def test_an_end_that_nobody_wants_costs_no_write(documents: Watched, service: Service) -> None:
    """What no handler is to be told of goes past the writer of the documents, whom all services wait for."""
    handlers = KnownHandlers(service.store, alone=True)
    lanes = Lanes(service.store, Sender(service.settings), handlers, service.settings, alone=True)
    telling = Telling(service.bus, service.store, lanes, handlers)
    await telling.tell([sample(JobEvent).but(event="succeeded")])
    assert documents.writes == 0
