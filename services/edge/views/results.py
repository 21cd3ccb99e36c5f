"""What a job made: all of it as an archive, or one file."""

from aiohttp import web

from gurney.errors import JobNotFinished, NotFound
from gurney.model.job import Job, JobGet
from gurney.model.payload import SignedFile
from gurney.subjects import JOB_GET
from services.edge import upload
from services.edge.call import Call
from services.edge.download import send_file
from services.edge.packing import send_archive
from services.edge.views.files import sign_one


async def archive(call: Call) -> web.StreamResponse:
    """Send all results; of a job that made none, an empty archive."""
    job = await _ended(call)
    return await send_archive(call, job.results, f"{job.name or job.id}-results")


async def get(call: Call) -> web.StreamResponse:
    path = upload.path_of(call.request)
    results = (await _ended(call)).results
    if results is None:
        raise NotFound(f"the job has no results, so no {path}")

    async def sign() -> SignedFile:
        return await sign_one(call, results, path)

    return await send_file(call, sign)


async def _ended(call: Call) -> Job:
    job = await call.ask(JOB_GET, JobGet(caller=call.caller, job=call.id("job", "job")))
    if not job.terminal:
        raise JobNotFinished(f"{job.id} is {job.state}: it has no results yet")
    if job.transient and job.finalized_at:
        raise NotFound(f"the results of {job.id} went with the answer to who waited for it")
    return job
