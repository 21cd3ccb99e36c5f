"""Tasks of InferenceServer's clients, over real documents, where somebody else is quicker."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gurney import clock
from gurney.client import AsyncClient
from gurney.documents.sqlite import SqliteDocuments
from gurney.store import Store
from services.inference_server.documents import Status, Task, Todo
from services.inference_server.keeper import Keeper
from services.inference_server.models import Models
from services.inference_server.repository import ALL, TASKS
from services.inference_server.settings import InferenceServerSettings
from services.inference_server.steps import Steps
from services.inference_server.stock import Stock
from services.inference_server.tasks import Tasks

UID = "a" * 43


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


@pytest.fixture
async def documents(tmp_path: Path) -> AsyncIterator[Meddled]:
    """Documents in which there is one settled task."""
    documents = Meddled(tmp_path / "documents", sync="normal")
    await documents.open(ALL)
    task = Task(
        id=UID,
        number=1,
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
    settings = InferenceServerSettings(token="t")
    async with AsyncClient("http://127.0.0.1:9", "t") as gurney:
        store, stock = Hurried(documents, None), Stock(gurney)
        models = Models(store, gurney, stock, settings, me="me")
        steps = Steps(store, gurney, stock, models, settings)
        yield Tasks(store, gurney, stock, steps, Keeper(store, gurney, models, steps, me="me"), me="me")


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
