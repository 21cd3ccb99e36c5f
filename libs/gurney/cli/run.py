"""`gurney run`: upload, submit, follow, download."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, TextIO

from cyclopts import Parameter

from gurney import tracing
from gurney.cli.asked import NOTHING, Asked
from gurney.cli.connect import HERE, Server
from gurney.cli.jobs import exit_code
from gurney.cli.maps import not_ready
from gurney.cli.output import err, print_json, size
from gurney.cli.payloads import to_upload
from gurney.cli.progress import bar
from gurney.client import AsyncClient
from gurney.client.http import Json
from gurney.errors import GurneyError, Invalid

#: Events that get no line: too many of one, and the last line tells the ends with their reason.
UNTOLD = frozenset({"job.progress", "job.succeeded", "job.failed", "job.canceled"})

#: Seconds of silence after which the log of a job that has ended is taken for whole.
LAST_LINES_S = 5.0


async def run(
    map: str,  # noqa: A002  # what people call it
    *paths: Path,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None,
    keep: Annotated[bool, Parameter(negative=())] = False,
    asked: Asked = NOTHING,
    server: Server = HERE,
) -> int:
    """Run a MAP on files and folders: upload, submit, follow state and log live, download the results.

    The exit code is that of the outcome: 0, the application's own, 130 when canceled, else 1. Ctrl-C cancels the job.

    Parameters
    ----------
    map
        A MAP by id or name, or a URN, which is registered where it is not yet.
    paths
        Files and folders to upload.
    output
        Folder for the results.
    keep
        Leave what was uploaded on the server: otherwise it goes when the job has ended.
    """
    options = asked.options()
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise Invalid(f"there is no {', '.join(missing)}")
    count, total = await asyncio.to_thread(to_upload, paths)
    if output:
        await asyncio.to_thread(check_output, output)
    async with server.client() as gurney, _root():
        ready = await _ready(gurney, map)
        payload = await _upload(gurney, paths, total, quiet=server.json)
        if not server.json:
            err.print(f"payload {payload['id']}: {count} files, {size(total)}", markup=False)
        job = await gurney.jobs.create(map=ready["id"], payload=payload["id"], **options)
        err.print(f"job {job['id']}", markup=False)
        ended = await _follow(gurney, job["id"], log=sys.stderr if server.json else sys.stdout)
        await _results(gurney, ended, output, quiet=server.json)
        if not keep:
            ended = await gurney.jobs.finalize(ended["id"])
    if server.json:
        print_json(ended)
    return exit_code(ended)


@asynccontextmanager
async def _root() -> AsyncIterator[None]:
    """Make one trace of all that follows."""
    with tracing.span("gurney run", tracing.INTERNAL, service="client"):
        yield


def check_output(folder: Path) -> None:
    """Make the folder and try to write there: what is wrong is told now, not after the run."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Invalid(f"cannot write to {folder}: {error.strerror}") from None


async def _ready(gurney: AsyncClient, ref: str) -> Json:
    """Return the MAP once it can run, registered where a URN is not yet."""
    if ref.startswith("urn:"):
        async for found in gurney.maps.list(urn=ref, state="ready"):
            return found
        found = await gurney.maps.register(ref)
    else:
        found = await gurney.maps.get(ref)
    settled = await gurney.maps.settled(found["id"])
    if settled["state"] != "ready":
        raise not_ready(settled)
    return settled


async def _upload(gurney: AsyncClient, paths: tuple[Path, ...], total: int, *, quiet: bool) -> Json:
    payload = await gurney.payloads.create()
    with bar("uploading", total, hidden=quiet) as moved:
        await gurney.payloads.upload(payload["id"], paths, moved=moved)
    return payload


async def _follow(gurney: AsyncClient, job: str, *, log: TextIO) -> Json:
    """Show states and log until the job has ended; Ctrl-C cancels it."""
    tail = _Tail(log)
    tasks = [asyncio.create_task(_states(gurney, job)), asyncio.create_task(tail.follow(gurney, job))]
    try:
        ended = await gurney.jobs.wait(job)
        seen = -1
        while tail.printed > seen and not tasks[1].done():  # the end is told before the last lines are
            seen = tail.printed
            await asyncio.wait(tasks, timeout=LAST_LINES_S)
    except asyncio.CancelledError:
        err.print("canceling the job", markup=False)
        await gurney.jobs.cancel(job)
        raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    reason = f": {ended['reason']['code']} {ended['reason']['message']}" if ended["reason"] else ""
    err.print(f"{ended['state']}{reason}", markup=False)
    return ended


async def _states(gurney: AsyncClient, job: str) -> None:
    try:
        async for event in gurney.jobs.events(job):
            if event.type.startswith("job.") and event.type not in UNTOLD:
                err.print(event.type.removeprefix("job."), style="dim", markup=False)
    except GurneyError:
        return  # the wait tells how it ended


class _Tail:
    """The log, printed as it comes."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        #: Characters.
        self.printed = 0

    async def follow(self, gurney: AsyncClient, job: str) -> None:
        try:
            async for text in gurney.jobs.logs(job, follow=True):
                print(text, end="", file=self._out, flush=True)
                self.printed += len(text)
        except GurneyError:
            return


async def _results(gurney: AsyncClient, job: Json, output: Path | None, *, quiet: bool) -> None:
    if output is None or not job["results"]:
        return
    total = (await gurney.payloads.get(job["results"]))["bytes"]
    with bar("downloading", total, hidden=quiet) as moved:
        files = await gurney.jobs.download(job["id"], output, moved=moved)
    if not quiet:
        err.print(f"{len(files)} results in {output}", markup=False)
