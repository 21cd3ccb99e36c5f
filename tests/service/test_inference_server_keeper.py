"""What is owed to tasks is done for each of them, however many wait, and for whatever."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from gurney import clock
from gurney.client import AsyncClient
from gurney.documents.sqlite import SqliteDocuments
from gurney.store import Store
from services.inference_server import keeper, repository
from services.inference_server.documents import Task, Todo
from services.inference_server.keeper import Keeper
from services.inference_server.models import Models
from services.inference_server.posting import Posting
from services.inference_server.repository import ALL, TASKS
from services.inference_server.settings import InferenceServerSettings
from services.inference_server.steps import Steps
from services.inference_server.stock import Stock


class Waiting(Steps):
    """Steps of which those of slow models take for ever."""

    def __init__(self, store: Store, gurney: AsyncClient, stock: Stock, models: Models) -> None:
        super().__init__(store, gurney, stock, models, InferenceServerSettings(token="t"))
        self.submitting: Counter[str] = Counter()
        self.submitted: set[str] = set()

    async def submit(self, task: Task, lock: asyncio.Lock) -> None:
        del lock
        self.submitting[task.model] += 1
        if task.model == "slow":
            await asyncio.Event().wait()
        self.submitted.add(task.id)


class Scene(NamedTuple):
    store: Store
    steps: Waiting
    keeper: Keeper


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    """A keeper whose rounds come quickly; Gurney is not there."""
    monkeypatch.setattr(keeper, "ROUND_S", 0.02)
    documents = SqliteDocuments(tmp_path / "documents", sync="normal")
    await documents.open(ALL)
    async with AsyncClient("http://127.0.0.1:9", "t") as gurney:
        store, stock = Store(documents, None), Stock(gurney)
        posting = Posting("me")
        models = Models(store, gurney, stock, InferenceServerSettings(token="t"), posting=posting)
        steps = Waiting(store, gurney, stock, models)
        yield Scene(store, steps, Keeper(store, gurney, models, steps, posting=posting))
    await documents.close()


async def test_a_task_does_not_wait_for_the_image_of_others(scene: Scene) -> None:
    """Behind however many older tasks whose image is not there yet, a task is submitted; of theirs only some wait."""
    count = repository.BATCH + 20
    for number in range(count + 1):
        model = "quick" if number == count else "slow"
        known = {"model": model, "model_human_readable_id": model, "todo": Todo.SUBMIT, "created_at": clock.now()}
        await scene.store.insert(TASKS, Task(id=f"{number}", number=number, **known))
    keeping = asyncio.create_task(scene.keeper.run())
    try:
        async with asyncio.timeout(30):
            while not scene.steps.submitted:
                await asyncio.sleep(0.01)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
    assert scene.steps.submitted == {f"{count}"}
    assert scene.steps.submitting["slow"] == keeper.WIDTH
