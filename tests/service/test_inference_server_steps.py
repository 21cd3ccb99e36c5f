"""Steps of InferenceServer's tasks over real documents, and a Gurney that answers what a test says."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from gurney import clock, facade
from gurney.client import AsyncClient
from gurney.client.http import Incoming, Json
from gurney.documents.sqlite import SqliteDocuments
from gurney.errors import MapNotReady, NotFound, RevisionConflict, Unavailable
from gurney.store import Store
from services.inference_server import keeper, machine, tasks
from services.inference_server.documents import Model, Numbered, Task, Todo
from services.inference_server.keeper import Keeper
from services.inference_server.models import Models
from services.inference_server.posting import Posting
from services.inference_server.repository import ALL, MODELS, TASKS
from services.inference_server.settings import InferenceServerSettings
from services.inference_server.steps import Steps
from services.inference_server.stock import Stock

SILENCE: Json = {}
NO_JOBS: Json = {"items": [], "next_cursor": None}
GONE: Json = {"code": "not_found", "detail": "there is none", "status": 404}
NOT_READY: Json = {"code": "map_not_ready", "detail": "the MAP is unregistered", "status": 409}


class Gurney:
    """A server; `answers`: what it says, one after another, to a method and a path."""

    def __init__(self) -> None:
        self.answers: dict[str, Iterator[Json]] = {}

    async def answer(self, request: web.Request) -> web.Response:
        told = next(self.answers[f"{request.method} {request.path}"])
        if told is SILENCE:
            await asyncio.Event().wait()
        return web.json_response(told, status=told.get("status", 200))


class Removed(Stock):
    """A stock that takes so long to unpack that another process removes the task meanwhile."""

    def __init__(self, client: AsyncClient, store: Store) -> None:
        super().__init__(client)
        self._store = store
        self.kept: set[str | None] = set()

    @asynccontextmanager
    async def reading(self, payload: str) -> AsyncIterator[Incoming]:
        del payload

        async def nothing() -> AsyncIterator[bytes]:
            yield b""

        yield Incoming(nothing(), None)

    async def unpack(self, thing: Numbered, archive: Path, part: str) -> str:
        del archive
        await self._store.replace(TASKS, machine.removed(await self._store.get(TASKS, thing.id)))
        self.kept.add(part)
        return part

    async def drop(self, payload: str | None) -> None:
        self.kept.discard(payload)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A store in which there is a model, and a task whose job is to be made."""
    documents = SqliteDocuments(tmp_path / "documents", sync="normal")
    await documents.open(ALL)
    store = Store(documents, None)
    now = clock.now()
    await store.insert(
        MODELS, Model(id="m", number=1, human_readable_id="m", container_tag="m", map="map_1", created_at=now)
    )
    await store.insert(
        TASKS,
        Task(id="t", number=1, model="m", model_human_readable_id="m", input="pay_1", todo=Todo.SUBMIT, created_at=now),
    )
    yield store
    await documents.close()


@pytest.fixture
def gurney() -> Gurney:
    return Gurney()


@pytest.fixture
async def client(gurney: Gurney) -> AsyncIterator[AsyncClient]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", gurney.answer)
    async with (
        facade.listening(app, "127.0.0.1", 0, handler_cancellation=True) as (host, port),
        AsyncClient(f"http://{host}:{port}", "t") as client,
    ):
        yield client


@pytest.fixture
def models(store: Store, client: AsyncClient) -> Models:
    return Models(store, client, Stock(client), InferenceServerSettings(token="t"), posting=Posting("me"))


@pytest.fixture
def steps(store: Store, client: AsyncClient, models: Models) -> Steps:
    return Steps(store, client, Stock(client), models, InferenceServerSettings(token="t"))


@pytest.fixture
async def tending(store: Store, client: AsyncClient, models: Models, steps: Steps) -> AsyncIterator[Keeper]:
    """What does what is owed; in the end it ends what it has begun."""
    keeper = Keeper(store, client, models, steps, posting=Posting("me"))
    yield keeper
    ending = asyncio.create_task(keeper.run())
    await asyncio.sleep(0)
    ending.cancel()
    await asyncio.gather(ending, return_exceptions=True)


async def test_a_job_whose_answer_was_lost_is_found(store: Store, gurney: Gurney, steps: Steps) -> None:
    """Whatever was said meanwhile of the model or of what its tasks get, no second job is made."""
    gurney.answers = {"GET /v1/jobs": iter([{"items": [{"id": "job_1"}], "next_cursor": None}])}
    await steps.submit(await store.get(TASKS, "t"), asyncio.Lock())
    found = await store.get(TASKS, "t")
    assert (found.todo, found.job) == (Todo.WATCH, "job_1")


async def test_a_map_that_has_just_been_replaced_fails_no_task(store: Store, gurney: Gurney, steps: Steps) -> None:
    """Where another task has had the image registered anew in this moment, the task is tried again."""
    gurney.answers = {
        "GET /v1/jobs": iter([NO_JOBS]),
        "GET /v1/maps/map_1": iter([{"id": "map_1", "state": "ready"}, {"id": "map_1", "state": "unregistered"}]),
        "POST /v1/jobs": iter([NOT_READY]),
    }
    with pytest.raises(Unavailable):
        await steps.submit(await store.get(TASKS, "t"), asyncio.Lock())
    assert (await store.get(TASKS, "t")).todo is Todo.SUBMIT


async def test_who_sees_nothing_of_a_task_does_not_believe_that_it_was_deleted(
    store: Store, gurney: Gurney, steps: Steps
) -> None:
    """With another's token, or another server, tasks stay as they are; where only its job has gone, so does one."""
    task = await store.replace(TASKS, (await store.get(TASKS, "t")).next(todo=Todo.WATCH, job="job_1", upload="pay_2"))
    gurney.answers = {
        "GET /v1/jobs/job_1": iter([GONE, GONE]),
        "GET /v1/payloads/pay_2": iter([GONE, {"id": "pay_2"}]),
    }
    with pytest.raises(NotFound):
        await steps.settle(task)
    assert await store.get(TASKS, "t") == task
    await steps.settle(task)
    assert (await store.get(TASKS, "t")).is_deleted


async def test_an_image_that_cannot_be_had_is_not_tried_with_every_task(
    store: Store, gurney: Gurney, models: Models
) -> None:
    """The registry is asked once more, not again for the next task in the same seconds, and one MAP is left."""
    model, now = await store.get(MODELS, "m"), clock.rfc3339(clock.now())
    old, new = [
        {"id": ref, "urn": "m", "state": "invalid", "digest": None, "reason": None, "created_at": at}
        for ref, at in (("map_1", "2026-01-01T00:00:00Z"), ("map_2", now))
    ]
    gurney.answers = {
        "GET /v1/maps/map_1": iter([old, old]),
        "POST /v1/maps": iter([new]),
        "GET /v1/maps/map_2": iter([new, new]),
        "DELETE /v1/maps/map_1": iter([{"id": "map_1"}]),
    }
    for _ in range(2):
        with pytest.raises(MapNotReady):
            await models.usable(model)
    assert (await store.get(MODELS, "m")).map == "map_2"


async def test_a_server_that_falls_silent_is_asked_again(
    store: Store, gurney: Gurney, tending: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its host was switched off no connection ends: a round is given up after a while, and made again."""
    monkeypatch.setattr(keeper, "ANSWERS_S", 0.05)
    monkeypatch.setattr(keeper, "WATCH_S", 0.01)
    monkeypatch.setattr(keeper, "ROUND_S", 60.0)
    asked_again = asyncio.Event()

    def answers() -> Iterator[Json]:
        yield SILENCE
        asked_again.set()
        while True:
            yield NO_JOBS

    gurney.answers = {"GET /v1/jobs": answers()}
    await store.replace(TASKS, (await store.get(TASKS, "t")).next(todo=Todo.NOTHING))
    running = asyncio.create_task(tending.run())
    try:
        async with asyncio.timeout(10):
            await asked_again.wait()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
def one_reader(
    store: Store, client: AsyncClient, steps: Steps, tending: Keeper, monkeypatch: pytest.MonkeyPatch
) -> tasks.Tasks:
    """What clients ask, where one of them may read an output at a time."""
    monkeypatch.setattr(tasks, "READERS", 1)
    return tasks.Tasks(store, client, Stock(client), steps, tending, posting=Posting("me"))


async def test_who_reads_slowly_leaves_connections_to_others(
    store: Store, gurney: Gurney, client: AsyncClient, one_reader: tasks.Tasks
) -> None:
    """So many outputs are on their way at once, and no more; whoever asks something else is answered."""
    gurney.answers = {"GET /v1/jobs/job_1/results": iter([NO_JOBS, NO_JOBS]), "GET /v1/jobs": iter([NO_JOBS] * 5)}
    task = (await store.get(TASKS, "t")).but(job="job_1")
    order: list[str] = []

    async def second() -> None:
        async with one_reader.output(task, "zip"):
            order.append("second")

    async with one_reader.output(task, "zip"):
        later = asyncio.create_task(second())
        for _ in range(5):
            order += [job["id"] async for job in client.jobs.list()]
        order.append("first")
    await later
    assert order == ["first", "second"]


@pytest.mark.parametrize("begun", ["canceled", "succeeded"])
async def test_a_task_that_begins_while_it_is_deleted_is_deleted(
    store: Store, gurney: Gurney, one_reader: tasks.Tasks, begun: str
) -> None:
    """Nobody is told that a task runs whose job he has just had stopped."""
    at = clock.rfc3339(clock.now())
    job = {"id": "job_1", "reason": None, "started_at": None, "stopped_at": None, "cancel_requested_at": None}
    running = job | {"state": "running", "started_at": at, "cancel_requested_at": at}
    gurney.answers = {
        "GET /v1/jobs/job_1": iter([job | {"state": "scheduled"}, running, running, running | {"state": begun}]),
        "POST /v1/jobs/job_1/cancel": iter([running, running]),
    }
    await store.replace(TASKS, (await store.get(TASKS, "t")).next(todo=Todo.WATCH, job="job_1"))
    with pytest.raises(Unavailable):
        await one_reader.delete("t", also_running=False)
    assert (await one_reader.delete("t", also_running=False)).task.is_deleted


async def test_an_input_that_is_unpacked_while_its_task_is_removed_goes(
    store: Store, client: AsyncClient, models: Models, tmp_path: Path
) -> None:
    """Another process has looked for what the task had before the input was there."""
    task = await store.replace(TASKS, (await store.get(TASKS, "t")).next(input=None, upload="pay_2"))
    stock = Removed(client, store)
    steps = Steps(store, client, stock, models, InferenceServerSettings(token="t", data=tmp_path / "data"))
    with pytest.raises(RevisionConflict):
        await steps.prepare(task)
    assert stock.kept == set()
