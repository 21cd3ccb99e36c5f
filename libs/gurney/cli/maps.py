"""`gurney map`."""

import asyncio
import json
from pathlib import Path

from cyclopts import App

from gurney.cli.asked import Pairs, pairs
from gurney.cli.connect import HERE, Server
from gurney.cli.output import print_json, show, show_list
from gurney.client.http import Json
from gurney.errors import Invalid, MapNotReady

app = App(name="map", help="MAPs: register, list, show, name, approve, remove.")


@app.command
async def register(
    urn: str,
    *,
    name: str | None = None,
    label: Pairs = (),
    description: Path | None = None,
    compatible: str | None = None,
    gpu_sharing: bool = False,
    wait: bool = True,
    server: Server = HERE,
) -> None:
    """Register a MAP by its URN or image reference.

    Parameters
    ----------
    label
        A label, as KEY=VALUE; may be given more than once.
    description
        A JSON file that says what an image without manifests does: command, paths, resources, content.
    compatible
        Why its containers cannot do with a read-only root and without capabilities; given, they need not.
    gpu_sharing
        Its runs that ask a share of a GPU may share one, also on nodes that have not said so of theirs.
    wait
        Return when its manifests were read, with exit code 1 and the reason where it is invalid; else at once.
    """
    labels = pairs("label", label)
    described = None if description is None else await asyncio.to_thread(_read, description)
    hardening = None if compatible is None else {"mode": "compatible", "reason": compatible}
    async with server.client() as gurney:
        document = await gurney.maps.register(
            urn,
            name=name,
            labels=labels,
            description=described,
            hardening=hardening,
            gpu_sharing=gpu_sharing,
        )
        if wait:
            document = await gurney.maps.settled(document["id"])
    usable = not wait or document["state"] == "ready"
    if usable or server.json:
        show(document, as_json=server.json)
    if not usable:
        raise not_ready(document)


def not_ready(document: Json) -> MapNotReady:
    """Return the error that says why a MAP cannot run."""
    reason = document["reason"] or {"code": document["state"], "message": "it cannot run"}
    return MapNotReady(f"{document['urn']}: {reason['code']}: {reason['message']}")


def _read(path: Path) -> Json:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise Invalid(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise Invalid(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise Invalid(f"{path} is not a JSON object")
    return content


@app.command
async def ls(
    *,
    name: str | None = None,
    state: str | None = None,
    urn: str | None = None,
    label: Pairs = (),
    server: Server = HERE,
) -> None:
    """List MAPs, newest first; filters combine."""
    async with server.client() as gurney:
        items = gurney.maps.list(name=name, state=state, urn=urn, label=pairs("label", label))
        await show_list(items, ("id", "name", "state", "urn", "reason", "created_at"), as_json=server.json)


@app.command(name="show")
async def show_map(ref: str, *, server: Server = HERE) -> None:
    """Show a MAP with its manifests."""
    async with server.client() as gurney:
        show(await gurney.maps.get(ref), as_json=server.json)


@app.command
async def name(ref: str, new_name: str | None = None, *, server: Server = HERE) -> None:
    """Name or rename a MAP; without a new name, remove its name."""
    async with server.client() as gurney:
        if new_name is None:
            await gurney.maps.unname(ref)
        else:
            show(await gurney.maps.rename(ref, new_name), as_json=server.json)


@app.command
async def approve(ref: str, *, server: Server = HERE) -> None:
    """Let a MAP run where only approved ones may; for administrators."""
    async with server.client() as gurney:
        show(await gurney.maps.approve(ref), as_json=server.json)


@app.command
async def rm(ref: str, *, server: Server = HERE) -> None:
    """Unregister a MAP."""
    async with server.client() as gurney:
        await gurney.maps.delete(ref)
        if server.json:
            print_json({"unregistered": ref})
