"""Sees to it that what is owed to tasks is done: soon after it is owed, and in rounds that find what a crash left.

Several processes may do so side by side, and the same.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import assert_never
from weakref import WeakValueDictionary

from gurney import clock, telemetry
from gurney.client import AsyncClient
from gurney.errors import GurneyError, RevisionConflict, Unavailable
from gurney.store import Store
from gurney.tasks import Together
from services.inference_server import machine, repository
from services.inference_server.documents import Task, Todo
from services.inference_server.models import Models
from services.inference_server.posting import Posting
from services.inference_server.repository import POSTERS, TASKS
from services.inference_server.steps import Steps
from services.inference_server.stock import KIND

#: Seconds between two rounds, and between two looks at jobs that have ended.
ROUND_S, WATCH_S = 2.0, 10.0
#: Seconds of jobs' ends that are looked at once more.
OVERLAP_S = 10.0
#: Seconds between two looks at some of the tasks themselves whose jobs live: whatever was missed, by whatever clock.
LOOK_S = 60.0
#: Seconds between two times that a process says that it lives; after what silence it is dead, and is forgotten.
LIVES_S, DEAD, FORGOTTEN = 10.0, timedelta(seconds=30), timedelta(days=1)
#: Seconds after which a round, or a step, is given up: a host that was switched off ends no connection.
ANSWERS_S = 300.0
#: Steps that are taken at once, and tasks of one model that are submitted at once.
WIDTH = 16

_log = telemetry.log("inference-server")


class Keeper:
    def __init__(self, store: Store, gurney: AsyncClient, models: Models, steps: Steps, *, posting: Posting) -> None:
        self._store = store
        self._gurney = gurney
        self._models = models
        self._steps = steps
        self._posting = posting
        self._gate = asyncio.Semaphore(WIDTH)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tending: dict[str, asyncio.Task[None]] = {}
        #: Tasks that are being submitted, by model: they may wait for its image.
        self._submitting: Counter[str] = Counter()
        self._looked_at: dict[Todo, Task | None] = {}
        self._steady_since: datetime | None = None
        self._watched_until: datetime | None = None

    async def run(self) -> None:
        """Make rounds until cancelled."""
        rounds = [(self._do_owed, ROUND_S), (self._watch, WATCH_S), (self._look, LOOK_S), (self._sweep, LIVES_S)]
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
                async with asyncio.timeout(ANSWERS_S):
                    await make()
            except (GurneyError, TimeoutError) as error:
                self._steady_since = None
                _log.info("round is made again", reason=getattr(error, "code", "timeout"))
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
            await self._do_some(todo)

    async def _look(self) -> None:
        await self._do_some(Todo.WATCH)

    async def _do_some(self, todo: Todo) -> None:
        """Look at some in each round, where there are more then at those behind them: nobody waits for all others."""
        found = await repository.owed(self._store, todo, self._looked_at.get(todo))
        self._looked_at[todo] = found[-1] if len(found) == repository.BATCH else None
        for task in found:
            self.soon(task.id)

    async def _sweep(self) -> None:
        """Say that this process lives; what was being posted by one that died, or gave it up, goes."""
        now = clock.now()
        await repository.lives(self._store, self._posting.me, now)
        # Where the database was away nobody could say so: then all get their time.
        self._steady_since = self._steady_since or now
        if now - self._steady_since < DEAD:
            return
        living = await repository.posters(self._store, now - DEAD)
        await self._models.sweep(living)
        for task in await repository.owed(self._store, Todo.POST):
            if self._posting.given_up(task, living):
                with contextlib.suppress(RevisionConflict):
                    await self._store.replace(TASKS, machine.deleted(machine.seen(task, None), now))
        for dead in await repository.dead_posters(self._store, now - FORGOTTEN):
            with contextlib.suppress(RevisionConflict):
                await self._store.remove(POSTERS, dead)

    async def _watch(self) -> None:
        """Settle tasks whose jobs have ended since the last look, at the first since the oldest was posted.

        Those that somebody polls are settled at once.
        """
        now, since = clock.now(), self._watched_until
        if since is None:
            waiting = await repository.owed(self._store, Todo.WATCH)
            since = waiting[0].created_at if waiting else now
        after = clock.rfc3339(since - timedelta(seconds=OVERLAP_S))
        with telemetry.span("watch", telemetry.INTERNAL, quiet=True):  # every 10 s: nobody wants a trace of that
            ended = [job["id"] async for job in self._gurney.jobs.list(label={KIND: "task"}, completed_after=after)]
        for job in ended:
            task = await repository.task_of_job(self._store, job)
            if task is not None and task.todo is Todo.WATCH:
                self.soon(task.id)
        self._watched_until = now

    async def _tend(self, uid: str) -> None:
        try:
            await self._step(await self._store.get(TASKS, uid))
        except RevisionConflict:
            pass  # somebody else has done it
        except Unavailable as error:
            _log.info("task waits", reason=error.code)
        except Exception as error:
            _log.warning("task waits", error=error)
        finally:
            del self._tending[uid]

    async def _step(self, task: Task) -> None:
        match task.todo:
            case Todo.SUBMIT if self._submitting[task.model] < WIDTH:
                self._submitting[task.model] += 1
                try:
                    await self._steps.submit(task, self.lock(task.id))
                finally:
                    self._submitting[task.model] -= 1
            case Todo.SUBMIT:
                pass  # in a round to come
            case Todo.WATCH:
                await self._gated(self._steps.settle, task)
            case Todo.STOP:
                await self._gated(self._steps.stop, task)
            case Todo.REMOVE:
                await self._gated(self._steps.remove, task)
            case Todo.POST | Todo.NOTHING:
                pass
            case _:
                assert_never(task.todo)

    async def _gated(self, step: Callable[[Task], Awaitable[None]], task: Task) -> None:
        """Take a step, not too many at once: clients are not to wait for it."""
        async with self._gate, asyncio.timeout(ANSWERS_S):
            await step(task)
