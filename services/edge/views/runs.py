"""Synchronous runs: an archive in, the results out, in one request; of the data nothing stays but a record of the job.

Whoever waits for a job says so all the time; where an edge is killed, the job's owner hears nothing any more and lets
the job and its data go.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from aiohttp import web
from pydantic import Field, ValidationError

from gurney import telemetry
from gurney.errors import Busy, GurneyError, JobTerminal, RunFailed, RunTimedOut, Unavailable, UnsupportedType
from gurney.model.common import Ref
from gurney.model.job import Admission, CreateJob, Job, JobCreate, JobGet, JobState, Priority
from gurney.model.payload import CreatePayload, Payload
from gurney.model.resources import AskedResources
from gurney.paths import check_path
from gurney.subjects import JOB_AWAIT, JOB_CANCEL, JOB_CREATE, JOB_FINALIZE, MAP_GET, PAYLOAD_DELETE
from services.edge import respond, unpacking, upload
from services.edge.call import Call, Edge
from services.edge.packing import ZIP, send_archive
from services.edge.parse import Label, Query, invalid, prefer_async, prefer_wait
from services.edge.waiting import until_ended

MEDIA = (ZIP, "application/x-zip-compressed")
#: Seconds between two times that the job's owner hears that somebody waits.
SAY_SO_S = 10.0
#: Seconds in which a job that was canceled ends.
CANCELED_S = 60.0
#: The longest that a request waits, in seconds; most jobs have a timeout before.
LONGEST_S = 31_536_000
#: The status of an answer that nobody reads.
CLIENT_GONE = 499

_log = telemetry.log("edge")


class RunQuery(Query):
    """What the JSON body of a job says otherwise."""

    REPEATED = frozenset({"label"})

    name: str | None = None
    label: tuple[Label, ...] = ()
    priority: Priority = Priority.NORMAL
    #: `reject`, or, with respond-async, the deployment's.
    admission: Admission | None = None
    timeout_s: Annotated[float, Field(ge=0, le=LONGEST_S)] | None = None
    cpu: float | None = None
    memory: int | None = None
    shared_memory: int | None = None
    gpus: int | None = None
    gpu_memory: int | None = None
    gpu_share: int | None = None
    gpu_model: str | None = None
    compute_capability: str | None = None
    #: The folder in the answer's zip in which the results lie; by default they lie at its top.
    folder: str | None = None

    def job(self, ref: str, payload: str, admission: Admission | None) -> CreateJob:
        """Return the body of the job; raises `Invalid`."""
        asked = {name: getattr(self, name) for name in AskedResources.model_fields if hasattr(self, name)}
        try:
            return CreateJob(
                map=ref,
                payload=payload,
                name=self.name,
                labels=dict(label.split("=", 1) for label in self.label),
                priority=self.priority,
                timeout_s=self.timeout_s,
                admission=self.admission or admission,
                resources=AskedResources(**asked) if any(value is not None for value in asked.values()) else None,
            )
        except ValidationError as error:
            raise invalid(error, flat=True) from error


async def create(call: Call) -> web.StreamResponse:
    """Run a MAP on a zip, and answer with a zip of the results; with respond-async as `POST /v1/jobs` does."""
    query = call.query(RunQuery)
    if call.request.content_type not in MEDIA:
        raise UnsupportedType(f"Content-Type: is {call.request.content_type[:80]}, {ZIP} is needed")
    wait = prefer_wait(call.request.headers, LONGEST_S)
    is_async = prefer_async(call.request.headers)
    upload.refuse_large(call.request.content_length or 0, call.edge.settings.max_upload)
    folder = f"{check_path(query.folder.removesuffix('/'))}/" if query.folder else ""
    query.job("map", "payload", None)  # what is wrong with it is told before gigabytes are moved for nothing
    ready = await call.ask(MAP_GET, Ref(caller=call.caller, ref=call.text("map")))
    if is_async:
        payload = await unpacking.make(call, CreatePayload(), zip_only=True)
        job = await _submitted(call, query.job(ready.id, payload.id, None), payload)
        answer = respond.made(job, "/v1/jobs", 202)
        answer.headers["Preference-Applied"] = "respond-async"
        return answer
    with _one_more(call.edge):
        payload = await unpacking.make(call, CreatePayload(), transient=True, zip_only=True)
        body = query.job(ready.id, payload.id, Admission.REJECT)
        job = await _submitted(call, body, payload, transient=True)
        return await _answered(call, job, wait, folder)


@contextlib.contextmanager
def _one_more(edge: Edge) -> Iterator[None]:
    most = edge.settings.sync_runs
    if edge.runs >= most:
        raise Busy(f"{edge.runs} runs are being answered, at most {most} may be at a time")
    edge.runs += 1
    try:
        yield
    finally:
        edge.runs -= 1


async def _submitted(call: Call, body: CreateJob, payload: Payload, *, transient: bool = False) -> Job:
    """Submit the job; where it is refused, its payload goes."""
    try:
        return await call.ask(JOB_CREATE, JobCreate(caller=call.caller, body=body, transient=transient), slow=True)
    except BaseException:
        await asyncio.shield(_undo(call, payload))
        raise


async def _undo(call: Call, payload: Payload) -> None:
    try:
        await call.ask(PAYLOAD_DELETE, Ref(caller=call.caller, ref=payload.id), slow=True)
    except GurneyError as error:
        _log.info("payload goes later", payload=payload.id, reason=error.code)


# --- the answer ---


async def _answered(call: Call, job: Job, wait: int | None, folder: str) -> web.StreamResponse:
    """Answer with what becomes of the job; its data are gone before the answer ends."""
    data = _Data(call, job)
    try:
        async with _said_to_be_awaited(call, job):
            ended = await until_ended(call, job.id, LONGEST_S if wait is None else wait)
            late = not ended.terminal and not call.gone
            if not ended.terminal:
                ended = await _stopped(call, ended)
            if call.request.transport is None:
                return web.Response(status=CLIENT_GONE)
            if ended.state is not JobState.SUCCEEDED:
                raise _failure(ended, late=late)
            name = f"{ended.name or ended.id}-results"
            return await send_archive(call, ended.results, name, folder=folder, before_end=data.drop)
    finally:
        await asyncio.shield(data.drop())


class _Data:
    """The data of a job, which go once."""

    def __init__(self, call: Call, job: Job) -> None:
        self._call = call
        self._job = job
        self._gone = False

    async def drop(self) -> None:
        """Let go of them. Where the owner does not hear of it, he does the same when he hears nothing any more."""
        if self._gone:
            return
        self._gone = True
        try:
            await self._call.ask(JOB_FINALIZE, _this(self._call, self._job), slow=True)
        except GurneyError as error:
            _log.info("data go later", job=self._job.id, reason=error.code)


@contextlib.asynccontextmanager
async def _said_to_be_awaited(call: Call, job: Job) -> AsyncIterator[None]:
    async def say_so() -> None:
        while True:
            await asyncio.sleep(SAY_SO_S)
            try:
                await call.ask(JOB_AWAIT, _this(call, job))
            except GurneyError as error:
                _log.info("not heard that it is awaited", job=job.id, reason=error.code)

    task = asyncio.create_task(say_so())
    try:
        yield
    finally:
        task.cancel()


async def _stopped(call: Call, job: Job) -> Job:
    """Cancel the job, and return it at its end; as the server stops, as it is then."""
    with contextlib.suppress(JobTerminal):
        await call.ask(JOB_CANCEL, _this(call, job), slow=True)
    return await until_ended(call, job.id, CANCELED_S, for_client=False)


def _failure(job: Job, *, late: bool) -> GurneyError:
    """Return the error that tells what became of a job that did not succeed."""
    code = job.reason.code if job.reason else None
    told = job.reason.message if job.reason else ""
    if not job.terminal:
        return Unavailable(f"{job.id} was told to stop and has not ended yet", retry_after_s=1)
    error: RunFailed
    if late or code == "timeout":
        error = RunTimedOut(f"{job.id} took longer than it may and was stopped")
    elif job.state is JobState.CANCELED:
        error = RunFailed(f"{job.id} was canceled")
    else:
        error = RunFailed(f"{job.id} failed: {told or code}")
    error.job, error.reason, error.exit_code = job.id, code, job.exit_code
    return error


def _this(call: Call, job: Job) -> JobGet:
    return JobGet(caller=call.caller, job=job.id)
