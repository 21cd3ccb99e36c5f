"""The states of a task, and what each step makes of it. Nothing here waits for anything.

A task says what its job says until it is settled: by the job's end, by a status or an output that somebody posted,
by its deletion. What is said counts, whatever the job does afterwards.
"""

from dataclasses import dataclass
from datetime import datetime

from gurney.client.http import Json
from services.inference_server.documents import Status, Task, Todo

#: What jobs in these states are as tasks; before that a task is pending.
_STATUS = {
    "running": Status.RUNNING,
    "succeeded": Status.FINISHED,
    "failed": Status.FAILED,
    "canceled": Status.FAILED,
}
#: What a job is until then, in its order.
ALIVE = ("requested", "scheduled", "running")
TERMINAL = frozenset({"succeeded", "failed", "canceled"})


@dataclass(frozen=True, slots=True)
class Seen:
    """What a client is told of a task."""

    task: Task
    status: Status
    dispatched_at: datetime | None
    finished_at: datetime | None
    has_output: bool


def seen(task: Task, job: Json | None) -> Seen:
    """Return what a client is told; `job`: as Gurney tells it, None where there is none or nobody tells."""
    if task.status is not None:
        has_output = task.output is not None or task.has_results
        return Seen(task, task.status, task.dispatched_at, task.finished_at, has_output)
    if job is None:
        return Seen(task, Status.PENDING, None, None, has_output=False)
    status = _STATUS.get(job["state"], Status.PENDING)
    return Seen(task, status, _time(job["started_at"]), _time(job["stopped_at"]), status is Status.FINISHED)


def settled(task: Task, job: Json) -> Task:
    """Return the task of a job that has ended."""
    said = seen(task, job)
    reason = job["reason"]["code"] if job["reason"] else None
    has_results = job["state"] == "succeeded"
    if task.status is not None:  # somebody has said it
        began = task.dispatched_at or _time(job["started_at"])
        return task.next(todo=Todo.NOTHING, has_results=has_results, dispatched_at=began)
    return task.next(
        todo=Todo.NOTHING,
        status=said.status,
        has_results=has_results,
        dispatched_at=said.dispatched_at,
        finished_at=said.finished_at,
        reason=reason,
    )


def submitted(task: Task, job: str) -> Task:
    return task.next(todo=Todo.WATCH, job=job)


def failed(task: Task, reason: str, now: datetime) -> Task:
    """Return the task for which there will be no job; what was made for one is to go."""
    return task.next(todo=Todo.STOP, status=Status.FAILED, reason=reason, finished_at=now)


def said(task: Task, status: Status, now: datetime, output: str | None = None) -> Task:
    """Return the task with a status, and perhaps an output, that somebody has posted."""
    changes: dict[str, object] = {"status": status, "output": output or task.output}
    changes |= {"dispatched_at": now} if status is Status.RUNNING else {"finished_at": now}
    return task.next(todo=Todo.NOTHING if task.todo is Todo.NOTHING else Todo.STOP, **changes)


def deleted(before: Seen, now: datetime) -> Task:
    """Return the task as it is told from then on."""
    over = before.status in {Status.FAILED, Status.FINISHED}
    return before.task.next(
        todo=Todo.REMOVE,
        is_deleted=True,
        status=before.status if over else Status.FAILED,
        dispatched_at=before.dispatched_at,
        finished_at=before.finished_at if over else now,
    )


def removed(task: Task) -> Task:
    """Return the deleted task of which nothing else is left."""
    return task.next(todo=Todo.NOTHING, upload=None, input=None, output=None, has_results=False)


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
