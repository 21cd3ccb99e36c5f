"""`gurney payload`."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from gurney.cli.asked import Pairs, pairs
from gurney.cli.connect import HERE, Server
from gurney.cli.output import print_json, show, show_list
from gurney.cli.progress import bar
from gurney.client.payloads import local_files
from gurney.errors import Invalid

app = App(name="payload", help="Payloads: create, put, get, list, remove.")


def to_upload(paths: Sequence[Path]) -> tuple[int, int]:
    """Return how many files these are and their bytes; raises where one is missing, or there are none."""
    sizes = [file.stat().st_size for _, file in local_files(paths)]
    if not sizes:
        raise Invalid(f"there are no files in {', '.join(map(str, paths))}" if paths else "give files or folders")
    return len(sizes), sum(sizes)


@app.command
async def create(
    *, name: str | None = None, keep: Annotated[bool, Parameter(negative=())] = False, server: Server = HERE
) -> None:
    """Create an empty payload."""
    async with server.client() as gurney:
        show(await gurney.payloads.create(name=name, keep=keep), as_json=server.json)


@app.command
async def put(ref: str, *paths: Path, server: Server = HERE) -> None:
    """Upload files and folders."""
    _, total = await asyncio.to_thread(to_upload, paths)
    async with server.client() as gurney:
        with bar("uploading", total, hidden=server.json) as moved:
            count = await gurney.payloads.upload(ref, paths, moved=moved)
        show(await gurney.payloads.get(ref) | {"uploaded": count}, as_json=server.json)


@app.command
async def get(ref: str, *, output: Annotated[Path, Parameter(name=("--output", "-o"))], server: Server = HERE) -> None:
    """Download all files of a payload, each verified."""
    async with server.client() as gurney:
        total = (await gurney.payloads.get(ref))["bytes"]
        with bar("downloading", total, hidden=server.json) as moved:
            files = await gurney.payloads.download(ref, output, moved=moved)
    if server.json:
        print_json({"files": [str(file) for file in files]})


@app.command
async def ls(ref: str | None = None, *, name: str | None = None, label: Pairs = (), server: Server = HERE) -> None:
    """List payloads, newest first; with a payload, its files."""
    async with server.client() as gurney:
        if ref is None:
            columns = ("id", "name", "files", "bytes", "claims", "created_at")
            await show_list(gurney.payloads.list(name=name, label=pairs("label", label)), columns, as_json=server.json)
        else:
            await show_list(gurney.payloads.files(ref), ("path", "size", "sha256"), as_json=server.json)


@app.command
async def rm(ref: str, *paths: str, server: Server = HERE) -> None:
    """Delete a payload; with paths, only these files of it."""
    async with server.client() as gurney:
        if not paths:
            await gurney.payloads.delete(ref)
        for path in paths:
            await gurney.payloads.remove(ref, path)
    if server.json:
        print_json({"removed": list(paths) or ref})
