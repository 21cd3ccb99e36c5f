"""Does what is owed to tasks: their jobs are made, watched, stopped, let go. What a crash left is found and done.

Each step is taken under the task's lock and ends with one compare-and-set, so that several processes may try the same.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import assert_never
from weakref import WeakValueDictionary

from gurney import clock, telemetry
from gurney.client import AsyncClient
from gurney.client.http import Json
from gurney.errors import (
    Conflict,
    GurneyError,
    Invalid,
    JobTerminal,
    MapNotReady,
    NotFound,
    RevisionConflict,
    TooLarge,
    UnsupportedType,
)
from gurney.spool import spooled
from gurney.store import Store
from gurney.tasks import Together
from services.inference_server import machine, repository
from services.inference_server.documents import Model, Task, Todo
from services.inference_server.models import Models
from services.inference_server.repository import POSTERS, TASKS
from services.inference_server.settings import InferenceServerSettings
from services.inference_server.stock import KIND, Stock, labels_of

#: Seconds between two rounds, and between two looks at jobs that have ended.
ROUND_S, WATCH_S = 2.0, 10.0
#: Seconds of jobs' ends that are looked at once more, and after which all are: an end may be told late.
OVERLAP_S, WHOLE_S = 10.0, 600.0
#: Seconds between two times that a process says that it lives; after what silence it is dead, and is forgotten.
LIVES_S, DEAD, FORGOTTEN = 10.0, timedelta(seconds=30), timedelta(days=1)
#: Seconds that a job may take to stop before others have their turn.
STOP_S = 20
#: Archives that are unpacked at once.
WIDTH = 4
#: What no repetition mends: the task has failed.
_FINAL = (Invalid, TooLarge, UnsupportedType, Conflict, NotFound)

_log = telemetry.log("inference-server")


class Keeper:
    """`me`: the process, as others know it."""

    def __init__(
        self,
        store: Store,
        gurney: AsyncClient,
        stock: Stock,
        models: Models,
        settings: InferenceServerSettings,
        *,
        me: str,
    ) -> None:
        self._store = store
        self._gurney = gurney
        self._stock = stock
        self._models = models
        self._settings = settings
        self._me = me
        self._gate = asyncio.Semaphore(WIDTH)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tending: dict[str, asyncio.Task[None]] = {}
        self._steady_since: datetime | None = None
        self._watched_until: datetime | None = None
        self._watched_whole = 0.0

    async def run(self) -> None:
        """Make rounds until cancelled."""
        rounds = [(self._do_owed, ROUND_S), (self._watch, WATCH_S), (self._sweep, LIVES_S)]
        try:
            async with Together() as group:
                for make, pause_s in rounds:
                    group.start(self._rounds(make, pause_s))
        finally:
            tending = list(self._tending.values())
            for each in tending:
                each.cancel()
            await asyncio.gather(*tending, return_exceptions=True)

    async def _rounds(self, make: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while True:
            try:
                await make()
            except GurneyError as error:
                self._steady_since = None
                _log.info("round is made again", reason=error.code)
            except Exception:
                _log.exception("round failed and is made again")
            await asyncio.sleep(pause_s)

    def lock(self, uid: str) -> asyncio.Lock:
        """Return the lock under which a task is changed in this process."""
        return self._locks.setdefault(uid, asyncio.Lock())

    def soon(self, uid: str) -> None:
        """Do what is owed to a task."""
        if uid not in self._tending:
            self._tending[uid] = asyncio.create_task(self._tend(uid))

    # --- rounds ---

    async def _do_owed(self) -> None:
        for todo in (Todo.SUBMIT, Todo.STOP, Todo.REMOVE):
            for task in await repository.owed(self._store, todo):
                self.soon(task.id)

    async def _sweep(self) -> None:
        """Say that this process lives; what was being posted by one that died goes: nobody knows of it."""
        now = clock.now()
        await repository.lives(self._store, self._me, now)
        # Where the database was away nobody could say so: then all get their time.
        self._steady_since = self._steady_since or now
        if now - self._steady_since < DEAD:
            return
        living = await repository.posters(self._store, now - DEAD)
        await self._models.sweep(living)
        for task in await repository.owed(self._store, Todo.POST):
            if task.poster not in living:
                with contextlib.suppress(RevisionConflict):
                    await self._store.replace(TASKS, machine.deleted(machine.seen(task, None), now))
        for dead in await repository.dead_posters(self._store, now - FORGOTTEN):
            with contextlib.suppress(RevisionConflict):
                await self._store.remove(POSTERS, dead)

    async def _watch(self) -> None:
        """Settle tasks whose jobs have ended since the last look, and now and then since the oldest was posted.

        Those that somebody polls are settled at once.
        """
        now, began = clock.now(), clock.monotonic()
        since = self._watched_until
        if since is None or began - self._watched_whole >= WHOLE_S:
            waiting = await repository.owed(self._store, Todo.WATCH)
            since = waiting[0].created_at if waiting else now
            self._watched_whole = began
        after = clock.rfc3339(since - timedelta(seconds=OVERLAP_S))
        async for job in self._gurney.jobs.list(label={KIND: "task"}, completed_after=after):
            task = await repository.task_of_job(self._store, job["id"])
            if task is not None and task.todo is Todo.WATCH:
                self.soon(task.id)
        self._watched_until = now

    async def _tend(self, uid: str) -> None:
        try:
            async with self.lock(uid):
                task = await self._store.get(TASKS, uid)
                await self._step(task)
        except RevisionConflict:
            pass  # somebody else has done it
        except GurneyError as error:
            _log.info("task waits", reason=error.code)
        except Exception:
            _log.exception("task waits")
        finally:
            del self._tending[uid]

    async def _step(self, task: Task) -> None:
        match task.todo:
            case Todo.SUBMIT:
                await self._submit(task)
            case Todo.WATCH:
                await self._settle(task)
            case Todo.STOP:
                await self._stop(task)
            case Todo.REMOVE:
                await self._remove(task)
            case Todo.POST | Todo.NOTHING:
                pass
            case _:
                assert_never(task.todo)

    # --- the job ---

    async def submission(self, task: Task, model: Model, archive: Path) -> Task:
        """Return what becomes of a task that is being posted: its job, if all that needs is there."""
        try:
            task = task.but(input=await self._stock.unpack(task, archive, "input"))
            if model.pull_on_every_run:
                return task.next(todo=Todo.SUBMIT)
            return machine.submitted(task, await self._job(task, model, model.map or ""))
        except MapNotReady:
            return task.next(todo=Todo.SUBMIT)
        except _FINAL as error:
            return self._failed(task, error)
        except GurneyError as error:
            _log.info("task waits", task=task.number, reason=error.code)
            return task.next(todo=Todo.SUBMIT)

    async def _submit(self, task: Task) -> None:
        after = task
        try:
            model = await repository.model_of(self._store, task.model)
            if task.input is None:
                async with self._gate, self._posted(task) as archive:
                    made = await self._stock.unpack(task, archive, "input")
                after = task = await self._store.replace(TASKS, task.next(input=made))
            find = self._models.pulled if model.pull_on_every_run else self._models.usable
            after = machine.submitted(task, await self._job(task, model, await find(model)))
        except _FINAL as error:
            after = self._failed(task, error)
        try:
            await self._store.replace(TASKS, after)
        except RevisionConflict:
            await self._gone(task)
            raise
        if after.job is None:
            await self._stock.drop(task.input)

    async def _gone(self, task: Task) -> None:
        """See to it that a job that came too late ends: whoever changed the task did not know of it."""
        now = await self._store.get(TASKS, task.id)
        if now.todo is Todo.NOTHING:
            await self._store.replace(TASKS, now.next(todo=Todo.REMOVE if now.is_deleted else Todo.STOP))

    @asynccontextmanager
    async def _posted(self, task: Task) -> AsyncIterator[Path]:
        """Yield the archive as it was posted."""
        if task.upload is None:
            raise NotFound("nothing was posted")
        folder = self._settings.data / "spool"
        async with self._stock.reading(task.upload) as incoming, spooled(folder, incoming.chunks) as archive:
            yield archive

    async def _job(self, task: Task, model: Model, map_id: str) -> str:
        """Submit the task's job; once, however often it is asked."""
        said = self._settings
        resources = {"cpu": said.cpu, "memory": said.memory, "gpus": 1 if model.use_gpu else 0}
        made = await self._gurney.jobs.create(
            map=map_id,
            payload=task.input or "",
            labels={**labels_of(task), "inference-server.model": model.human_readable_id[:255]},
            resources=resources | ({"shared_memory": said.shared_memory} if said.shared_memory else {}),
            timeout_s=said.timeout,
            admission="queue",
            idempotency_key=f"{task.label}-job-{map_id}",
        )
        return str(made["id"])

    def _failed(self, task: Task, error: GurneyError) -> Task:
        _log.warning("task failed", task=task.number, error=error)
        return machine.failed(task, error.code, clock.now())

    # --- its end ---

    async def _settle(self, task: Task) -> None:
        try:
            job = await self._gurney.jobs.get(task.job or "")
        except NotFound:  # somebody has deleted it
            await self._store.replace(TASKS, machine.deleted(machine.seen(task, None), clock.now()))
            return
        if job["state"] in machine.TERMINAL:
            await self._gurney.jobs.finalize(job["id"])  # its input goes
            await self._store.replace(TASKS, machine.settled(task, job))

    async def _stop(self, task: Task) -> None:
        ended: Json | None = None
        async for job in self._gurney.jobs.list(label=labels_of(task)):
            ended = await self.stopped(job["id"])
            if ended["state"] not in machine.TERMINAL:
                return
            await self._gurney.jobs.finalize(job["id"])
        if ended is None:
            await self._stock.drop(task.input)
            await self._store.replace(TASKS, task.next(todo=Todo.NOTHING, input=None))
        else:
            await self._store.replace(TASKS, machine.settled(task, ended))

    async def _remove(self, task: Task) -> None:
        async for job in self._gurney.jobs.list(label=labels_of(task)):
            if (await self.stopped(job["id"]))["state"] not in machine.TERMINAL:
                return
            await self._gurney.jobs.delete(job["id"])
        async for payload in self._gurney.payloads.list(label=labels_of(task)):
            await self._stock.drop(payload["id"])
        await self._store.replace(TASKS, machine.removed(task))

    async def stopped(self, job: str) -> Json:
        """Cancel a job, and return it at its end, or as it is after a while."""
        with contextlib.suppress(JobTerminal):
            await self._gurney.jobs.cancel(job)
        return await self._gurney.jobs.get(job, wait_s=STOP_S)
