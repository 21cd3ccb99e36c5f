"""What is done for a task, step by step: its job is made, settled, stopped, removed. Each step may be taken again.

A step ends with one compare-and-set; where somebody else was quicker it raises `RevisionConflict`, and he has done it.
Everything of a task that lies with Gurney has its label, so that also what an answer that was lost had made is found.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

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
    Unavailable,
    UnsupportedType,
)
from gurney.spool import spooled
from gurney.store import Store
from services.inference_server import machine, repository
from services.inference_server.documents import Model, Task, Todo
from services.inference_server.models import Models
from services.inference_server.repository import TASKS
from services.inference_server.settings import InferenceServerSettings
from services.inference_server.stock import Stock, labels_of

#: Seconds for which a job that is to stop is waited for before others have their turn.
STOP_S = 5
#: Seconds after which a task whose image is waited for is looked at again: what it has is to go when it is deleted.
LOOK_S = 1.0
#: Archives that are unpacked once more at a time.
WIDTH = 4
#: What no repetition mends: the task has failed.
_FINAL = (Invalid, TooLarge, UnsupportedType, Conflict, NotFound)

_log = telemetry.log("inference-server")


class Steps:
    def __init__(
        self, store: Store, gurney: AsyncClient, stock: Stock, models: Models, settings: InferenceServerSettings
    ) -> None:
        self._store = store
        self._gurney = gurney
        self._stock = stock
        self._models = models
        self._settings = settings
        self._gate = asyncio.Semaphore(WIDTH)

    # --- its beginning ---

    async def submission(self, task: Task, model: Model, archive: Path) -> Task:
        """Return what becomes of a task that is being posted: its job, where all is there that one needs."""
        try:
            task = task.but(input=await self._stock.unpack(task, archive, "input"))
            if model.pull_on_every_run:
                return task.next(todo=Todo.SUBMIT)
            return machine.submitted(task, await self._job(task, model, model.map or ""))
        except MapNotReady:
            return task.next(todo=Todo.SUBMIT)
        except _FINAL as error:
            return _failed(task, error)
        except GurneyError as error:
            _log.info("task waits", task=task.number, reason=error.code)
            return task.next(todo=Todo.SUBMIT)

    async def prepare(self, task: Task) -> tuple[Task, Model, str]:
        """Have what the job of a task needs: its input, and a MAP that is ready, which may take an hour."""
        model = await repository.model_of(self._store, task.model)
        if task.input is None:
            async with self._gate, self._posted(task) as archive:
                made = await self._stock.unpack(task, archive, "input")
            task = await self._unpacked(task, made)
        find = self._models.pulled if model.pull_on_every_run else self._models.usable
        return task, model, await self._found(task, find(model))

    async def _unpacked(self, task: Task, made: str) -> Task:
        """Note the input that was made; where another process has removed the task, nobody else would find it."""
        try:
            return await self._store.replace(TASKS, task.next(input=made))
        except RevisionConflict:
            if (await self._store.get(TASKS, task.id)).todo is Todo.NOTHING:
                await self._stock.drop(made)
            raise

    async def _found(self, task: Task, find: Coroutine[Any, Any, str]) -> str:
        """Return the MAP; raises `RevisionConflict` where somebody changes the task while its image is waited for."""
        finding = asyncio.create_task(find)
        try:
            while not (await asyncio.wait({finding}, timeout=LOOK_S))[0]:
                await self._require_same(task)
            return finding.result()
        finally:
            finding.cancel()
            await asyncio.gather(finding, return_exceptions=True)

    async def _require_same(self, task: Task) -> None:
        if (await self._store.get(TASKS, task.id)).revision != task.revision:
            raise RevisionConflict

    async def submit(self, task: Task, lock: asyncio.Lock) -> None:
        """Make the task's job. Only that is done under its lock: nobody waits for an image to delete a task."""
        try:
            if (made := await self._made(task)) is not None:
                await self._store.replace(TASKS, machine.submitted(task, made))
                return
            task, model, map_id = await self.prepare(task)
            async with lock:
                await self._require_same(task)
                job = await self._on_current(task, model, map_id)
                await self._store.replace(TASKS, machine.submitted(task, job))
        except RevisionConflict:
            raise
        except _FINAL as error:
            await self._store.replace(TASKS, _failed(task, error))

    async def _made(self, task: Task) -> str | None:
        """Return the job whose answer was lost: with other settings by now, or another MAP, a second would be made."""
        job = await anext(self._gurney.jobs.list(label=labels_of(task)), None)
        return None if job is None else str(job["id"])

    async def _on_current(self, task: Task, model: Model, map_id: str) -> str:
        """Submit the job; raises `Unavailable` where another task has had the MAP registered anew in this moment."""
        try:
            return await self._job(task, model, map_id)
        except MapNotReady as error:
            if (await self._gurney.maps.get(map_id))["state"] == "unregistered":
                raise Unavailable(f"{map_id} has been registered anew") from error
            raise

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

    # --- its end ---

    async def settle(self, task: Task) -> None:
        """Keep what has become of a job that has ended; its input goes."""
        try:
            job = await self._gurney.jobs.get(task.job or "")
        except NotFound:  # somebody has deleted it, unless nothing of ours is to be seen, as with another's token
            await self._gurney.payloads.get(task.upload or "")
            await self._store.replace(TASKS, machine.deleted(machine.seen(task, None), clock.now()))
            return
        if job["state"] in machine.TERMINAL:
            await self._gurney.jobs.finalize(job["id"])
            await self._store.replace(TASKS, machine.settled(task, job))

    async def stop(self, task: Task) -> None:
        """Stop what a task has that is over by somebody's word, or for which there will be no job; its input goes."""
        ended: Json | None = None
        async for job in self._gurney.jobs.list(label=labels_of(task)):
            ended = await self.stopped(job["id"])
            if ended["state"] not in machine.TERMINAL:
                return
            await self._gurney.jobs.finalize(job["id"])
        if ended is not None:
            await self._store.replace(TASKS, machine.settled(task, ended))
            return
        async for payload in self._gurney.payloads.list(label=labels_of(task)):
            if not payload["keep"]:  # archives stay: somebody may be posting the output right now
                await self._stock.drop(payload["id"])
        await self._store.replace(TASKS, task.next(todo=Todo.NOTHING, input=None))

    async def remove(self, task: Task) -> None:
        """Remove all that a deleted task has."""
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


def _failed(task: Task, error: GurneyError) -> Task:
    _log.warning("task failed", task=task.number, error=error)
    return machine.failed(task, error.code, clock.now())
