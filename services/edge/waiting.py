"""Waits for the end of a job on behalf of a client."""

import asyncio
import contextlib

from gurney.clock import monotonic
from gurney.model.job import Job, JobGet
from gurney.subjects import JOB_GET
from services.edge.call import Call

#: Seconds between two looks at a job that somebody waits for, in case that its last message was lost.
LOOK_AGAIN_S = 5.0
#: Seconds between two looks whether the client is still there.
GONE_S = 0.5


async def until_ended(call: Call, job_id: str, seconds: float, *, for_client: bool = True) -> Job:
    """Return the job at its end, or as it is after so many seconds, or when the server goes.

    `for_client`: or when the client goes.
    """
    until = monotonic() + seconds
    with call.edge.waiters.watching(job_id) as told:
        while True:
            told.clear()
            job = await call.ask(JOB_GET, JobGet(caller=call.caller, job=job_id))
            left = until - monotonic()
            if job.terminal or left <= 0 or call.edge.stopping.is_set() or (for_client and call.gone):
                return job
            look_at = monotonic() + min(left, LOOK_AGAIN_S)
            while not told.is_set() and monotonic() < look_at and not (for_client and call.gone):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(GONE_S, look_at - monotonic())):
                        await told.wait()
