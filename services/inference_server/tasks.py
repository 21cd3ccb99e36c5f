"""Tasks, as clients ask for them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from gurney import clock, telemetry
from gurney.client import AsyncClient
from gurney.client.http import Incoming, Json
from gurney.errors import Conflict, GurneyError, NotFound, RevisionConflict, Unavailable
from gurney.ids import new_asker, new_secret
from gurney.store import Store
from services.inference_server import machine, repository
from services.inference_server.documents import Format, Model, Numbered, Status, Task, Todo
from services.inference_server.keeper import Keeper
from services.inference_server.machine import Seen
from services.inference_server.patience import patiently, promptly
from services.inference_server.posting import Posting
from services.inference_server.repository import TASKS, Numbers
from services.inference_server.steps import Steps
from services.inference_server.stock import KIND, Stock

RUNS = "Task is running"
#: Jobs that are asked for at once.
PAGE = 1000
#: Archives on their way out at once: who reads slowly leaves connections to Gurney, 256, to all else.
READERS = 128

_log = telemetry.log("inference-server")


class Tasks:
    def __init__(
        self, store: Store, gurney: AsyncClient, stock: Stock, steps: Steps, keeper: Keeper, *, posting: Posting
    ) -> None:
        self._store = store
        self._gurney = gurney
        self._stock = stock
        self._steps = steps
        self._keeper = keeper
        self._posting = posting
        self._numbers = Numbers(store, "tasks")
        self._readers = asyncio.Semaphore(READERS)

    async def post(self, model: Model, format: Format, archive: Path, uid: str | None = None) -> Task:  # noqa: A002
        """Store a task; when it is answered, nothing of it can get lost. Raises `Conflict` where the uid is taken."""
        task = Task(
            id=uid or new_secret(),
            number=await self._numbers.next(),
            format=format,
            poster=self._posting.me,
            model=model.id,
            model_human_readable_id=model.human_readable_id,
            todo=Todo.POST,
            created_at=clock.now(),
        )
        with self._posting.of(task):  # what is given up is swept: by then Gurney makes nothing of it any more
            await repository.insert(self._store, task)
            after = await self._steps.submission(task, model, archive)
            kept = await self._stock.keep(task, archive, "archive")  # while the job runs
            after = after.but(upload=kept)
            try:
                await repository.replace(self._store, after)
            except RevisionConflict:
                await self._store.update(TASKS, task.id, lambda swept: (swept.next(todo=Todo.REMOVE), ()))
                raise Unavailable("the task was taken for given up", retry_after_s=1) from None
        if after.todo is not Todo.WATCH:
            self._keeper.soon(task.id)
        return after

    # --- what is told ---

    async def of(self, uid: str) -> Seen:
        """Return what is to be told of a task; raises `NotFound`."""
        return await self.seen(await repository.task_of(self._store, uid))

    async def numbered(self, number: int) -> Seen:
        return await self.seen(await repository.task_numbered(self._store, number))

    async def seen(self, task: Task) -> Seen:
        """Return what is to be told. While nobody tells of its job, a task is pending: it is alive, for all we know."""
        if task.status is not None or task.job is None:
            return machine.seen(task, None)
        try:
            job = await promptly(self._gurney.jobs.get(task.job))
        except NotFound:  # somebody has deleted it: so will this be
            self._keeper.soon(task.id)
            raise
        except GurneyError as error:
            _log.info("nobody tells of a job", task=task.number, reason=error.code)
            return machine.seen(task, None)
        if job["state"] in machine.TERMINAL:
            self._keeper.soon(task.id)
        return machine.seen(task, job)

    async def all(self) -> AsyncIterator[Seen]:
        """Yield all tasks, deleted ones too, each as it is told alone."""
        alive: dict[str, Json] = {}
        for state in machine.ALIVE:
            found = self._gurney.jobs.list(label={KIND: "task"}, state=state, limit=PAGE)
            alive |= {job["id"]: job async for job in found}
        async for task in repository.tasks(self._store):
            if task.status is not None or task.job is None or task.job in alive:
                yield machine.seen(task, alive.get(task.job or ""))
            else:  # its job has ended, and it is about to be settled
                with contextlib.suppress(NotFound):
                    yield await self.seen(task)

    @asynccontextmanager
    async def archive(self, thing: Numbered) -> AsyncIterator[Incoming]:
        """Yield what was posted, as it was; raises `NotFound`, `Unavailable`."""
        if thing.upload is None:
            raise NotFound("nothing was posted")
        async with self._readers, self._stock.reading(thing.upload) as incoming:
            yield incoming

    @asynccontextmanager
    async def output(self, task: Task, format: Format) -> AsyncIterator[Incoming]:  # noqa: A002
        """Yield the output of a task that has one; raises `NotFound`, `Unavailable`."""
        if task.output is not None:
            async with self._readers, self._stock.reading(task.output) as incoming:
                yield incoming
        else:
            async with self._readers, self._gurney.jobs.results(task.job or "", tar=format == "tar") as incoming:
                yield incoming

    # --- what is said ---

    async def say(self, uid: str, status: Status) -> Seen:
        """Set a status: it counts from then on, and the task's job stops."""
        return await self._changed(uid, lambda task: machine.said(task, status, clock.now()))

    async def post_output(self, uid: str, archive: Path) -> Seen:
        """Set the output: the task is finished, and its job stops."""
        task = await repository.task_of(self._store, uid)
        kept = await self._stock.keep(task, archive, f"output-{new_asker()}")
        before: set[str | None] = set()

        def said(task: Task) -> Task:
            before.add(task.output)
            return machine.said(task, Status.FINISHED, clock.now(), kept)

        try:
            after = await self._changed(uid, said)
        except NotFound:  # it has been deleted meanwhile, perhaps with all that it had
            await self._stock.drop(kept)
            raise
        for output in before - {kept}:
            await self._stock.drop(output)
        return after

    async def delete(self, uid: str, *, also_running: bool) -> Seen:
        """Delete a task: one that is pending never starts. Raises `Conflict` where it runs, unless that may be ended.

        Raises `Unavailable` where it cannot be told whether it runs.
        """
        async with self._keeper.lock(uid):
            job = await self._stopped(await repository.task_of(self._store, uid), also_running=also_running)

            def deleted(task: Task) -> Task:
                before = machine.seen(task, job)
                if before.status is Status.RUNNING and not also_running:
                    raise Conflict(RUNS)
                return machine.deleted(before, clock.now())

            return await self._changed(uid, deleted)

    async def _changed(self, uid: str, change: Callable[[Task], Task]) -> Seen:
        """Change a task that is there, whatever becomes of it meanwhile; raises `NotFound`."""
        await repository.task_of(self._store, uid)
        after = await self._store.update(TASKS, uid, lambda task: (change(repository.there(task)), ()))
        self._keeper.soon(uid)
        return machine.seen(after, None)

    async def _stopped(self, task: Task, *, also_running: bool) -> Json | None:
        """Return the task's job, stopped; None where it has no say."""
        if task.status is not None or task.job is None:
            return None
        ref = task.job
        try:
            job = await patiently(lambda: self._gurney.jobs.get(ref))
            if job["state"] in machine.TERMINAL:
                return job
            if job["state"] == "running" and not also_running and not job["cancel_requested_at"]:
                return job
            job = await patiently(lambda: self._steps.stopped(ref))
        except NotFound:
            return None
        if not also_running and job["state"] not in machine.TERMINAL:
            raise Unavailable("its job has not stopped yet", retry_after_s=1)
        return job  # also where it began in this moment: who is told that it runs would find it failed
