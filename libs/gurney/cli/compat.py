"""`gurney compat inference-server`: InferenceServer's API, of an old server or of Gurney's façade."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from gurney.cli.models_copied import copied
from gurney.cli.output import err, print_json, show, show_list, size
from gurney.cli.payloads import to_upload
from gurney.cli.progress import bar
from gurney.cli.run import check_output
from gurney.client.http import Incoming, Json
from gurney.client.inference_server import STATES, InferenceServer, State
from gurney.client.zips import outgoing, received, temporary, unpacked
from gurney.errors import Invalid

app = App(name="compat", help="For clients and administrators of older systems.")
inference_server = App(
    name="inference-server",
    help="Speak InferenceServer's API: post models and tasks, fetch outputs, copy models from an old server.",
)
app.command(inference_server)

PUBLIC, PRIVATE = "GURNEY_INFERENCE_SERVER_URL", "GURNEY_INFERENCE_SERVER_PRIVATE_URL"
PUBLIC_URL, PRIVATE_URL = "http://127.0.0.1:8000", "http://127.0.0.1:7000"

SAID = {
    State.FINISHED: "finished",
    State.PENDING: "pending: it waits, or runs",
    State.FAILED: "it has failed, and there is no output",
    State.NO_OUTPUT: "it has finished, and there is no output",
    State.UNKNOWN: "there is no such task, or it was deleted",
}
#: Of `get-task`; a task that has not ended is no failure.
EXIT_CODES = {State.FINISHED: 0, State.PENDING: os.EX_TEMPFAIL}

Output = Annotated[Path | None, Parameter(name=("--output", "-o"))]
Flag = Annotated[bool, Parameter(negative=())]
#: One of 64 begins with a hyphen.
Uid = Annotated[str, Parameter(allow_leading_hyphen=True)]


@Parameter(name="*")
@dataclass
class Listener:
    """Options of the commands that talk to one listener."""

    url: Annotated[str | None, Parameter(group="Server")] = None
    """URL of the listener; by default GURNEY_INFERENCE_SERVER_URL, or http://127.0.0.1:8000."""
    json: Annotated[bool, Parameter(negative=(), group="Server")] = False
    """Print JSON for machines."""

    def server(self, *, private: bool = False) -> InferenceServer:
        named, default = (PRIVATE, PRIVATE_URL) if private else (PUBLIC, PUBLIC_URL)
        return InferenceServer(self.url or os.environ.get(named) or default)


HERE = Listener()


@inference_server.command
async def post_model(
    container_tag: str,
    name: str,
    *,
    description: str | None = None,
    content: Path | None = None,
    gpu: Annotated[bool, Parameter(negative="--no-gpu")] = True,
    private: Flag = False,
    listener: Listener = HERE,
) -> None:
    """Post a model.

    Parameters
    ----------
    container_tag
        Its image.
    name
        Its human readable id.
    content
        A zip or a folder: what its tasks find in /model.
    gpu
        Whether its tasks need a GPU.
    private
        Post to the private listener: by default GURNEY_INFERENCE_SERVER_PRIVATE_URL, or http://127.0.0.1:7000.
    """
    paths = [content] if content else []
    total = (await asyncio.to_thread(to_upload, paths))[1] if paths else 0
    async with listener.server(private=private) as server:
        with bar("uploading", total, hidden=listener.json or not paths) as moved:
            made = await server.post_model(
                container_tag,
                name,
                description=description,
                use_gpu=gpu,
                content=await outgoing(paths, moved) if paths else None,
            )
    show(made, as_json=listener.json)


@inference_server.command
async def post_task(
    model: str, *paths: Path, wait: Flag = False, output: Output = None, listener: Listener = HERE
) -> int:
    """Post a task; prints its uid, which is all that anybody needs to fetch its output.

    Parameters
    ----------
    model
        The model's human readable id.
    paths
        One zip, or files and folders, which are packed while they are sent.
    wait
        Return at its end, with the exit code 0 only where it has an output.
    output
        With --wait: where its output goes, as `get-task` has it.
    """
    if output and not wait:
        raise Invalid("output: there is none before the task has ended: add --wait")
    _, total = await asyncio.to_thread(to_upload, paths)
    if output:
        await asyncio.to_thread(_check, output)
    async with listener.server() as server:
        with bar("uploading", total, hidden=listener.json) as moved:
            uid = await server.post_task(model, await outgoing(paths, moved))
        if not listener.json:
            print(uid, flush=True)
        elif wait:
            err.print(f"task {uid}", markup=False)  # whoever interrupts the wait has it
        if wait:
            return await _told(server, uid, output, wait=True, as_json=listener.json)
    if listener.json:
        print_json({"uid": uid})
    return 0


@inference_server.command
async def get_task(uid: Uid, *, output: Output = None, wait: Flag = False, listener: Listener = HERE) -> int:
    """Tell how a task is, and fetch its output.

    The exit code is 0 where it has finished with an output, 75 while it is pending, else 1.

    Parameters
    ----------
    uid
        As `post-task` prints it. Where it begins with -o, put it last, behind --.
    output
        Where its output goes: a file whose name ends in .zip, or else a folder, into which it is unpacked.
    wait
        Wait until it is no longer pending.
    """
    if output and wait:
        await asyncio.to_thread(_check, output)
    async with listener.server() as server:
        return await _told(server, uid, output, wait=wait, as_json=listener.json)


@inference_server.command
async def copy_models(
    *,
    source: Annotated[str, Parameter(name="--from")],
    target: Annotated[str, Parameter(name="--to", env_var=PRIVATE)] = PRIVATE_URL,
    only: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    dry_run: Flag = False,
    json: Flag = False,
) -> int:
    """Copy models from an old server. Those that are there already are left as they are.

    The exit code is 0 where each model is there in the end, else 1; what failed may be asked for again.

    Parameters
    ----------
    source
        URL of the old server's private listener, such as http://old:7000.
    target
        URL of the new server's private listener.
    only
        Human readable ids of the models to copy; by default all.
    dry_run
        Copy nothing, and tell what would be.
    json
        Print JSON for machines, an object a model.
    """
    failures = 0

    async def lines() -> AsyncIterator[Json]:
        nonlocal failures
        async for line in copied(old, new, only, dry_run=dry_run, quiet=json):
            failures += line["outcome"] == "failed"
            yield line

    async with InferenceServer(source) as old, InferenceServer(target) as new:
        await show_list(lines(), ("human_readable_id", "container_tag", "content", "outcome", "note"), as_json=json)
    return 1 if failures else 0


async def _told(server: InferenceServer, uid: str, output: Path | None, *, wait: bool, as_json: bool) -> int:
    """Tell how a task is and return the exit code that says so; its output lies where it should by then."""
    fetched: Json = {"output": None, "files": None, "bytes": None}
    async with server.settled(uid) if wait else server.output(uid) as told:
        if told.output and output:
            fetched = await _fetched(told.output, output, quiet=as_json)
    code = next(code for code, state in STATES.items() if state is told.state)
    if as_json:
        print_json({"uid": uid, "status": code, "state": told.state, **fetched})
    elif told.state is State.FINISHED:
        print(f"{SAID[told.state]}: {output}, {size(fetched['bytes'])}" if output else SAID[told.state])
    if told.state is not State.FINISHED:
        sys.stderr.write(f"gurney: {SAID[told.state]} ({code})\n")
    return EXIT_CODES.get(told.state, 1)


def _is_file(output: Path) -> bool:
    return output.suffix.lower() == ".zip" and not output.is_dir()


def _check(output: Path) -> None:
    check_output(output.parent if _is_file(output) else output)


async def _fetched(incoming: Incoming, output: Path, *, quiet: bool) -> Json:
    """Write an output, or unpack it: it counts when all of it is there."""
    with bar("downloading", incoming.size or 0, hidden=quiet) as moved:
        if await asyncio.to_thread(_is_file, output):
            part = output.with_name(f"{output.name}.part")
            try:
                count = await received(incoming, part, moved)
                await asyncio.to_thread(part.replace, output)
            except BaseException:
                await asyncio.shield(asyncio.to_thread(part.unlink, missing_ok=True))
                raise
            return {"output": str(output), "files": None, "bytes": count}
        await asyncio.to_thread(check_output, output)
        async with temporary(output) as part:
            count = await received(incoming, part, moved)
            return {"output": str(output), "files": await unpacked(part, output), "bytes": count}
