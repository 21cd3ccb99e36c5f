"""Jobs: create, list, read and wait for, cancel, finalize, delete, and their stories."""

from aiohttp import web

from gurney.errors import GurneyError
from gurney.model.access import Role
from gurney.model.base import InputTimestamp
from gurney.model.job import CreateJob, Job, JobCreate, JobGet, JobList, JobState, Story
from gurney.model.run import Explain
from gurney.subjects import (
    JOB_CANCEL,
    JOB_CREATE,
    JOB_DELETE,
    JOB_FINALIZE,
    JOB_GET,
    JOB_LIST,
    SCHEDULER_EXPLAIN,
)
from services.edge import respond, waiting
from services.edge.call import Call
from services.edge.parse import DryRun, Labelled, prefer_wait


class JobsQuery(Labelled):
    map: str | None = None
    payload: str | None = None
    state: JobState | None = None
    completed_after: InputTimestamp | None = None
    completed_before: InputTimestamp | None = None


async def create(call: Call) -> web.Response:
    body = await call.body(CreateJob)
    dry_run = call.query(DryRun).dry_run
    key = None if dry_run else call.idempotency()
    question = JobCreate(caller=call.caller, body=body, idempotency=key, dry_run=dry_run)
    found = await call.ask(JOB_CREATE, question, slow=True)
    return respond.dry(found) if dry_run else respond.made(found, "/v1/jobs")


async def index(call: Call) -> web.Response:
    question = JobList(caller=call.caller, **call.query(JobsQuery).filters())
    return respond.page(await call.ask(JOB_LIST, question))


async def get(call: Call) -> web.Response:
    wait = prefer_wait(call.request.headers)
    if wait is None:
        return respond.document(await _with_waiting(call, await _read(call)))
    job = await waiting.until_ended(call, call.id("job", "job"), wait)
    applied = {"Preference-Applied": f"wait={wait}"}
    return respond.document(await _with_waiting(call, job), headers=applied)


async def story(call: Call) -> web.Response:
    return respond.document(Story(items=(await _read(call)).story))


async def cancel(call: Call) -> web.Response:
    job = await call.ask(JOB_CANCEL, _this(call), slow=True)
    return respond.document(job, 200 if job.state is JobState.CANCELED else 202)


async def finalize(call: Call) -> web.Response:
    return respond.document(await call.ask(JOB_FINALIZE, _this(call), slow=True))


async def delete(call: Call) -> web.Response:
    await call.ask(JOB_DELETE, _this(call), slow=True)
    return respond.nothing()


def _this(call: Call) -> JobGet:
    return JobGet(caller=call.caller, job=call.id("job", "job"))


async def _read(call: Call) -> Job:
    return await call.ask(JOB_GET, _this(call))


async def _with_waiting(call: Call, job: Job) -> Job:
    """Return the job with the reasons why it waits, if it does and the scheduler is there to tell."""
    if job.state is not JobState.REQUESTED or call.gone:
        return job
    try:
        explained = await call.ask(
            SCHEDULER_EXPLAIN, Explain(job_id=job.id, names=call.caller.role is Role.ADMINISTRATOR)
        )
    except GurneyError:
        return job
    return job.but(waiting=explained.waiting)
