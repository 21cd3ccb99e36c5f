"""Tasks of InferenceServer's clients, over real documents, where somebody else is quicker."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from gurney import clock, facade
from gurney.client import AsyncClient
from gurney.documents.sqlite import SqliteDocuments
from gurney.errors import Internal, NotFound, Unavailable
from gurney.store import Store
from services.inference_server import machine, patience, repository
from services.inference_server.documents import Counter, Model, Numbered, Status, Task, Todo
from services.inference_server.keeper import Keeper
from services.inference_server.models import Models
from services.inference_server.posting import Posting
from services.inference_server.repository import ALL, COUNTERS, TASKS
from services.inference_server.settings import InferenceServerSettings
from services.inference_server.steps import Steps
from services.inference_server.stock import Stock
from services.inference_server.tasks import Tasks

UID = "a" * 43
MODEL = Model(id="m", number=1, human_readable_id="m", container_tag="m", map="map", created_at=clock.now())


class Meddled(SqliteDocuments):
    """Documents of which one is changed by somebody else, each time that it has been read, for a while."""

    times = 0

    async def meddle(self, task: Task) -> None:
        if self.times:
            self.times -= 1
            await Store(self, None).replace(TASKS, task.next(reason=f"changed {self.times}"))


class Hurried(Store):
    """A store in which reading a task is what somebody else has waited for."""

    async def get(self, collection, id):  # type: ignore[no-untyped-def]  # noqa: A002, ANN001, ANN201
        found = await super().get(collection, id)
        assert isinstance(self.documents, Meddled)
        await self.documents.meddle(found)
        return found


class Submits(Steps):
    """Steps by which each task that is posted has a job at once."""

    async def submission(self, task: Task, model: Model, archive: Path) -> Task:
        del self, model, archive
        return machine.submitted(task, "job")


class Swept(Stock):
    """A stock that takes so long that others take this process for dead meanwhile, and sweep what it was posting."""

    def __init__(self, gurney: AsyncClient, store: Store) -> None:
        super().__init__(gurney)
        self._store = store

    async def keep(self, thing: Numbered, archive: Path, part: str) -> str:
        del thing, archive
        for task in await repository.owed(self._store, Todo.POST):
            gone = machine.deleted(machine.seen(task, None), clock.now())
            await self._store.replace(TASKS, gone)
            await self._store.replace(TASKS, machine.removed(gone))
        return part


class Deleted(Stock):
    """A stock that takes so long that a task is deleted meanwhile, with all that it has."""

    def __init__(self, gurney: AsyncClient, store: Store) -> None:
        super().__init__(gurney)
        self._store = store
        self.kept: set[str | None] = set()

    async def keep(self, thing: Numbered, archive: Path, part: str) -> str:
        del archive
        task = await self._store.get(TASKS, thing.id)
        await self._store.replace(TASKS, machine.removed(task).but(is_deleted=True))
        self.kept.add(part)
        return part

    async def drop(self, payload: str | None) -> None:
        self.kept.discard(payload)


@asynccontextmanager
async def gurney_that_comes_back(away: set[str]) -> AsyncIterator[AsyncClient]:
    """Yield a client of a server that has nothing, and is away while the set has something."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=503) if away else web.json_response({"items": [], "next_cursor": None})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with (
        facade.listening(app, "127.0.0.1", 0) as (host, port),
        AsyncClient(f"http://{host}:{port}", "t") as client,
    ):
        yield client


@pytest.fixture
async def documents(tmp_path: Path) -> AsyncIterator[Meddled]:
    """Documents in which there is one settled task."""
    documents = Meddled(tmp_path / "documents", sync="normal")
    await documents.open(ALL)
    task = Task(
        id=UID,
        number=1_000,
        model="m",
        model_human_readable_id="m",
        created_at=clock.now(),
        todo=Todo.NOTHING,
        status=Status.FINISHED,
    )
    await Store(documents, None).insert(TASKS, task)
    yield documents
    await documents.close()


@pytest.fixture
async def tasks(documents: Meddled) -> AsyncIterator[Tasks]:
    """What clients ask; nobody is there whom it could ask."""
    async with AsyncClient("http://127.0.0.1:9", "t") as gurney:
        yield asking(Hurried(documents, None), gurney, Stock(gurney))


def asking(store: Store, gurney: AsyncClient, stock: Stock) -> Tasks:
    settings, posting = InferenceServerSettings(token="t"), Posting("me")
    models = Models(store, gurney, stock, settings, posting=posting)
    steps = Submits(store, gurney, stock, models, settings)
    return Tasks(store, gurney, stock, steps, Keeper(store, gurney, models, steps, posting=posting), posting=posting)


async def test_what_is_said_counts_also_where_somebody_is_quicker(documents: Meddled, tasks: Tasks) -> None:
    """A task that is being settled meanwhile refuses no word of anybody, nor its deletion."""
    documents.times = 2
    assert (await tasks.say(UID, Status.FAILED)).status is Status.FAILED
    assert documents.times == 0
    documents.times = 1
    assert (await tasks.delete(UID, also_running=False)).task.is_deleted
    found = await documents.get(TASKS, UID)
    assert found is not None
    assert (found.reason, found.status, found.is_deleted) == ("changed 0", Status.FAILED, True)


async def test_a_task_that_others_swept_while_it_was_posted_is_not_answered(documents: Meddled) -> None:
    """Who posted it is told to try again, and all that was made since then goes, too."""
    store = Store(documents, None)
    async with AsyncClient("http://127.0.0.1:9", "t") as gurney:
        with pytest.raises(Unavailable):
            await asking(store, gurney, Swept(gurney, store)).post(MODEL, "zip", Path("archive"), "swept")
    found = await store.get(TASKS, "swept")
    assert (found.todo, found.is_deleted) == (Todo.REMOVE, True)


async def test_a_model_that_could_not_be_undone_is_undone_later(
    documents: Meddled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Gurney is away a failed post leaves the model's readable id taken; by the next sweep it is free."""
    monkeypatch.setattr(patience, "PATIENCE_S", 0.1)
    store, away, posting = Store(documents, None), {"gurney"}, Posting("me")
    async with gurney_that_comes_back(away) as gurney:
        models = Models(store, gurney, Stock(gurney), InferenceServerSettings(token="t"), posting=posting)
        with pytest.raises(Unavailable):
            await models.post({"human_readable_id": "m", "container_tag": "m"}, "zip", None)
        assert len(await repository.half_posted(store)) == 1
        away.clear()
        await models.sweep({"me"})
    assert await repository.half_posted(store) == []


def test_what_is_being_posted_is_swept_by_nobody() -> None:
    """Neither by its own process, nor by another while that says that it lives."""
    posting = Posting("me")
    task = Task(
        id="t", number=2, poster="me", model="m", model_human_readable_id="m", created_at=clock.now(), todo=Todo.POST
    )
    with posting.of(task):
        assert not posting.given_up(task, {"me"})
    assert posting.given_up(task, {"me"})
    assert not Posting("other").given_up(task, {"me"})
    assert Posting("other").given_up(task, {"other"})


async def test_a_number_that_is_taken_tells_nobody_s_uid(documents: Meddled, tasks: Tasks) -> None:
    """Counters that are older than the tasks, as after a restore, refuse a post, not with the uid of another task."""
    await Store(documents, None).insert(COUNTERS, Counter(id="tasks", last=999))
    with pytest.raises(Internal) as refused:
        await tasks.post(MODEL, "zip", Path("archive"))
    assert UID not in str(refused.value)


async def test_an_output_of_a_task_that_is_deleted_meanwhile_goes(documents: Meddled) -> None:
    """Nobody else would find it: the task has been removed by then."""
    store = Store(documents, None)
    async with AsyncClient("http://127.0.0.1:9", "t") as gurney:
        stock = Deleted(gurney, store)
        with pytest.raises(NotFound):
            await asking(store, gurney, stock).post_output(UID, Path("archive"))
    assert stock.kept == set()
