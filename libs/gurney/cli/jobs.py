"""`gurney job`."""

import sys
from typing import Annotated

from cyclopts import App, Parameter

from gurney.cli.asked import NOTHING, Asked, Pairs, pairs
from gurney.cli.connect import HERE, Server
from gurney.cli.output import out, print_json, show, show_list
from gurney.client.http import Json

app = App(name="job", help="Jobs: create, list, show, logs, story, wait, cancel, finalize, remove.")

#: The exit code of a canceled job, as a shell says it of an interrupt.
CANCELED = 130


def exit_code(job: Json) -> int:
    """Return the exit code of a job's outcome: 0, the application's own, 130 when canceled, else 1."""
    match job["state"]:
        case "succeeded":
            return 0
        case "canceled":
            return CANCELED
        case _:
            return int(job["exit_code"] or 1)


@app.command
async def create(
    map: str,  # noqa: A002  # what people call it
    payload: str,
    *,
    asked: Asked = NOTHING,
    idempotency_key: str | None = None,
    server: Server = HERE,
) -> None:
    """Submit a job for a MAP and a payload that the server has, each by id or name.

    Parameters
    ----------
    idempotency_key
        The same key again gives the same job, not another.
    """
    options = asked.options()
    async with server.client() as gurney:
        made = await gurney.jobs.create(map=map, payload=payload, idempotency_key=idempotency_key, **options)
        show(made, as_json=server.json)


@app.command
async def ls(
    *,
    map: str | None = None,  # noqa: A002  # the option's name
    payload: str | None = None,
    state: str | None = None,
    label: Pairs = (),
    created_after: str | None = None,
    created_before: str | None = None,
    completed_after: str | None = None,
    completed_before: str | None = None,
    server: Server = HERE,
) -> None:
    """List jobs, newest first; filters combine."""
    async with server.client() as gurney:
        items = gurney.jobs.list(
            map=map,
            payload=payload,
            state=state,
            label=pairs("label", label),
            created_after=created_after,
            created_before=created_before,
            completed_after=completed_after,
            completed_before=completed_before,
        )
        columns = ("id", "name", "map", "state", "reason", "node", "created_at", "stopped_at")
        await show_list(items, columns, as_json=server.json)


@app.command(name="show")
async def show_job(job: str, *, server: Server = HERE) -> None:
    """Show a job."""
    async with server.client() as gurney:
        show(await gurney.jobs.get(job), as_json=server.json)


@app.command
async def logs(
    job: str,
    *,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), negative=())] = False,
    attempt: int | None = None,
    server: Server = HERE,
) -> None:
    """Print what the run wrote; with --follow as it writes."""
    async with server.client() as gurney:
        async for text in gurney.jobs.logs(job, follow=follow, attempt=attempt):
            sys.stdout.write(text)
            sys.stdout.flush()


@app.command
async def story(job: str, *, server: Server = HERE) -> None:
    """Tell what happened to a job and why, in order."""
    async with server.client() as gurney:
        told = await gurney.jobs.story(job)
        if server.json:
            print_json(told)
        else:
            print_story(told)


def print_story(told: Json) -> None:
    """Print a story, a line an item."""
    for item in told["items"]:
        more = "  ".join(str(item[key]) for key in ("node", "message") if item.get(key))
        out.print(f"{item['at']}  {item['attempt']}  {item['event']:<10}  {more}", markup=False)


@app.command
async def wait(job: str, *, server: Server = HERE) -> int:
    """Wait until a job has ended; the exit code is that of its outcome."""
    async with server.client() as gurney:
        ended = await gurney.jobs.wait(job)
        show(ended, as_json=server.json)
        return exit_code(ended)


@app.command
async def cancel(job: str, *, server: Server = HERE) -> None:
    """Cancel a job."""
    async with server.client() as gurney:
        show(await gurney.jobs.cancel(job), as_json=server.json)


@app.command
async def finalize(job: str, *, server: Server = HERE) -> None:
    """Let go of a finished job's input; its results stay."""
    async with server.client() as gurney:
        show(await gurney.jobs.finalize(job), as_json=server.json)


@app.command
async def rm(job: str, *, server: Server = HERE) -> None:
    """Delete a finished job with its logs and results."""
    async with server.client() as gurney:
        await gurney.jobs.delete(job)
        if server.json:
            print_json({"deleted": job})
