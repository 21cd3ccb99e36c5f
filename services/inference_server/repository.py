"""The collections of the façade, and their queries."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from gurney.clock import rfc3339
from gurney.documents.port import Collection, Query, Where
from gurney.errors import Conflict, Internal, KeyTaken, NotFound, RevisionConflict
from gurney.store import Store
from services.inference_server.documents import Counter, Model, Poster, Task, Todo
from services.inference_server.patience import patiently

MODELS = Collection("inference_server_models", Model, (("created_at",), ("map", "created_at")))
TASKS = Collection("inference_server_tasks", Task, (("created_at",), ("todo", "created_at")))
POSTERS = Collection("inference_server_posters", Poster, (("seen_at",),))
COUNTERS = Collection("inference_server_counters", Counter)
ALL = (MODELS, TASKS, POSTERS, COUNTERS)

#: What clients are told.
NO_MODEL = "Model not found"
#: Tasks that are read at once.
BATCH = 256
#: Most models in a list.
MOST_MODELS = 10_000


class Numbers:
    """Gives numbers out, each once. A process takes a few at a time, so a restart leaves a gap."""

    BLOCK = 32

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._next = 0
        self._end = 0
        self._lock = asyncio.Lock()

    async def next(self) -> int:
        async with self._lock:
            if self._next == self._end:
                self._end = await patiently(self._taken) + 1
                self._next = self._end - self.BLOCK
            self._next += 1
            return self._next - 1

    async def _taken(self) -> int:
        """Return the last number of a block that is ours."""
        while True:
            try:
                found = await self._store.documents.get(COUNTERS, self._name)
                if found is None:
                    taken = await self._store.insert(COUNTERS, Counter(id=self._name, last=self.BLOCK))
                else:
                    taken = await self._store.replace(COUNTERS, found.next(last=found.last + self.BLOCK))
            except RevisionConflict:
                continue
            return taken.last


async def models(store: Store) -> list[Model]:
    """Return all models, in the order in which they were posted."""
    return [model for model in await store.find(MODELS, limit=MOST_MODELS) if model.map]


async def model_named(store: Store, human_readable_id: str) -> Model:
    """Return a model; raises `NotFound`."""
    return _posted(await store.documents.by_key(MODELS, f"name:{human_readable_id}"))


async def model_numbered(store: Store, number: int) -> Model:
    return _posted(await store.documents.by_key(MODELS, f"number:{number}"))


async def model_of(store: Store, uid: str) -> Model:
    return _posted(await store.documents.get(MODELS, uid))


def _posted(found: Model | None) -> Model:
    if found is None or found.map is None:
        raise NotFound(NO_MODEL)
    return found


async def half_posted(store: Store) -> list[Model]:
    """Return models that are being posted, or never were to the end."""
    return await store.find(MODELS, Where("map", "=", None))


async def tasks(store: Store) -> AsyncIterator[Task]:
    """Yield all tasks, deleted ones too, in the order in which they were posted."""
    after: tuple[Any, ...] | None = None
    while True:
        query = Query((), descending=False, limit=BATCH, after=after)
        found = await store.documents.find(TASKS, query)
        for task in found:
            if task.todo is not Todo.POST:
                yield task
        if len(found) < BATCH:
            return
        after = _place(found[-1])


def _place(task: Task) -> tuple[str, str]:
    """Return where a task stands in the order of lists."""
    return rfc3339(task.created_at), task.id


async def task_of(store: Store, uid: str) -> Task:
    """Return a task that is there, and not deleted; raises `NotFound`."""
    return there(await store.documents.get(TASKS, uid))


async def task_numbered(store: Store, number: int) -> Task:
    return there(await store.documents.by_key(TASKS, f"number:{number}"))


def there(found: Task | None) -> Task:
    """Return a task that clients may know of; raises `NotFound`."""
    if found is None or found.is_deleted or found.todo is Todo.POST:
        raise NotFound("Task not found")
    return found


async def insert(store: Store, task: Task) -> None:
    """Store a new task; a database that is away is waited for. Raises `Conflict` where its uid is taken."""

    async def once() -> None:
        try:
            await store.insert(TASKS, task)
        except RevisionConflict:
            found = await store.documents.get(TASKS, task.id)
            if found is None or found.number != task.number:  # else the answer was lost the first time
                raise Conflict("there is a task with this uid already") from None
        except KeyTaken:  # it would tell the uid of another's task
            raise Internal(f"there is a task {task.number} already: the counters are older than the tasks") from None

    await patiently(once)


async def replace(store: Store, task: Task) -> None:
    """Store the next revision of a task that is ours alone; a database that is away is waited for.

    Raises `RevisionConflict` where it is not ours any more: for others we were silent for too long, and they swept it.
    """

    async def once() -> None:
        try:
            await store.replace(TASKS, task)
        except RevisionConflict:
            found = await store.documents.get(TASKS, task.id)
            if found is None or found.is_deleted or found.revision < task.revision:
                raise  # else the answer was lost the first time

    await patiently(once)


async def task_of_job(store: Store, job: str) -> Task | None:
    return await store.documents.by_key(TASKS, f"job:{job}")


async def owed(store: Store, todo: Todo, after: Task | None = None) -> list[Task]:
    """Return up to `BATCH` tasks to which this is owed, longest waiting first, those behind `after`."""
    where, last = (Where("todo", "=", todo),), _place(after) if after else None
    return await store.documents.find(TASKS, Query(where, descending=False, limit=BATCH, after=last))


async def lives(store: Store, poster: str, now: datetime) -> None:
    """Note that a process lives."""
    found = await store.documents.get(POSTERS, poster)
    if found is None:
        await store.insert(POSTERS, Poster(id=poster, seen_at=now))
    else:
        await store.replace(POSTERS, found.next(seen_at=now))


async def posters(store: Store, since: datetime) -> set[str]:
    """Return the processes that have said since then that they live."""
    return {each.id for each in await store.find(POSTERS, Where("seen_at", ">=", since), sort=("seen_at", "id"))}


async def dead_posters(store: Store, before: datetime) -> list[Poster]:
    return await store.find(POSTERS, Where("seen_at", "<", before), sort=("seen_at", "id"))
