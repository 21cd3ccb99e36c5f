"""What becomes of a task: by its job, by what somebody says of it, by its deletion."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gurney.client.http import Json
from gurney.clock import rfc3339
from services.inference_server import machine
from services.inference_server.documents import Status, Task, Todo
from services.inference_server.replies import Refused, require_output

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=9)
LIVE, ENDED = ("requested", "scheduled", "running"), ("succeeded", "failed", "canceled")


def a_task(**changes: Any) -> Task:
    known = {"id": "u", "number": 1, "model": "m", "model_human_readable_id": "m", "created_at": NOW, "job": "job"}
    return Task(**{**known, "todo": Todo.WATCH, **changes})


def a_job(state: str) -> Json:
    at = rfc3339(NOW)
    return {
        "id": "job",
        "state": state,
        "reason": None if state == "succeeded" else {"code": "why", "message": ""},
        "started_at": at if state in {"running", "succeeded"} else None,
        "stopped_at": at if state in ENDED else None,
    }


def code(seen: machine.Seen) -> int:
    """Return with what an output is refused, 200 where there is one."""
    try:
        require_output(seen)
    except Refused as error:
        return error.status
    return 200


@pytest.mark.parametrize(
    ("state", "status", "answer"),
    [
        ("requested", Status.PENDING, 551),
        ("scheduled", Status.PENDING, 551),
        ("running", Status.RUNNING, 551),
        ("succeeded", Status.FINISHED, 200),
        ("failed", Status.FAILED, 552),
        ("canceled", Status.FAILED, 552),
    ],
)
def test_a_task_says_what_its_job_says(state: str, status: Status, answer: int) -> None:
    """Until somebody else says otherwise, its job counts, before and after the task is settled."""
    seen = machine.seen(a_task(), a_job(state))
    assert (seen.status, code(seen)) == (status, answer)
    if state in ENDED:
        after = machine.settled(a_task(), a_job(state))
        assert (after.todo, after.revision) == (Todo.NOTHING, 2)
        assert machine.seen(after, None) == machine.Seen(
            after, status, seen.dispatched_at, seen.finished_at, has_output=state == "succeeded"
        )


def test_a_task_whose_job_nobody_tells_of_is_alive() -> None:
    """Where there is no job yet, or nobody answers, a task is pending."""
    for task in (a_task(), a_task(job=None, todo=Todo.SUBMIT)):
        assert code(machine.seen(task, None)) == 551


@pytest.mark.parametrize(("said", "state"), list(itertools.product((0, 1, 2), (*LIVE, *ENDED))))
def test_what_is_said_counts_whatever_the_job_does(said: int, state: str) -> None:
    """A status that was set stays when the job ends, with its time."""
    task = machine.said(a_task(), Status(said), LATER)
    assert task.todo is Todo.STOP
    assert (task.dispatched_at, task.finished_at) == ((LATER, None) if said == 2 else (None, LATER))
    for seen in (machine.seen(task, a_job(state)), machine.seen(task, None)):
        assert seen.status == said
        assert code(seen) == {0: 552, 1: 553, 2: 551}[said]
    if state in ENDED:
        after = machine.settled(task, a_job(state))
        assert (after.status, after.finished_at, after.todo) == (said, task.finished_at, Todo.NOTHING)


def test_an_output_that_is_posted_is_the_output() -> None:
    """It finishes the task, also where its job fails, or has written results of its own."""
    task = machine.said(a_task(), Status.FINISHED, LATER, "pay_1")
    for state in ENDED:
        seen = machine.seen(machine.settled(task, a_job(state)), None)
        assert (code(seen), seen.task.output) == (200, "pay_1")


def test_saying_something_of_a_settled_task_owes_nothing() -> None:
    """There is no job to stop any more; what it wrote is there again when it is said to have finished."""
    task = machine.settled(a_task(), a_job("succeeded"))
    failed = machine.said(task, Status.FAILED, LATER)
    assert (failed.todo, code(machine.seen(failed, None))) == (Todo.NOTHING, 552)
    assert code(machine.seen(machine.said(failed, Status.FINISHED, LATER), None)) == 200


@pytest.mark.parametrize("state", [None, *LIVE, *ENDED])
def test_a_deleted_task_keeps_what_it_was(state: str | None) -> None:
    """What had ended stays as it was; what had not has failed; all that hangs on it is owed to go."""
    before = machine.seen(a_task(), a_job(state) if state else None)
    task = machine.deleted(before, LATER)
    ended = state in ENDED
    assert (task.is_deleted, task.todo) == (True, Todo.REMOVE)
    assert task.status == (before.status if ended else Status.FAILED)
    assert task.finished_at == (before.finished_at if ended else LATER)
    gone = machine.removed(task)
    assert (gone.todo, gone.upload, gone.input, gone.output) == (Todo.NOTHING, None, None, None)
    assert (gone.is_deleted, gone.status) == (True, task.status)


STEPS = st.lists(st.sampled_from(["settle", "say0", "say1", "say2", "output", "delete", "fail"]), max_size=6)


@given(STEPS, st.sampled_from(ENDED))
def test_no_failure_is_told_as_a_success(steps: list[str], state: str) -> None:
    """Whatever happens in whatever order, only a job that succeeded or somebody's word makes an output."""
    task, word = a_task(), False
    for step in steps:
        if task.is_deleted:
            break
        match step:
            case "settle" if task.todo in {Todo.WATCH, Todo.STOP}:
                task = machine.settled(task, a_job(state))
            case "fail" if task.todo is Todo.WATCH and task.status is None:
                task = machine.failed(task, "why", NOW)
            case "output":
                task, word = machine.said(task, Status.FINISHED, NOW, "pay"), True
            case "delete":
                task = machine.deleted(machine.seen(task, None), NOW)
            case "say0" | "say1" | "say2":
                task = machine.said(task, Status(int(step[-1])), NOW)
    if code(machine.seen(task, None)) == 200:
        assert word or (state == "succeeded" and task.has_results)
