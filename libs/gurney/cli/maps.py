"""`gurney map`."""

from typing import Annotated

from cyclopts import App, Parameter

from gurney.cli.connect import Server
from gurney.cli.output import print_json, show, show_list

app = App(name="map", help="MAPs: register, list, show, name, remove.")

HERE = Server()


@app.command
async def register(
    urn: str,
    *,
    name: str | None = None,
    label: tuple[str, ...] = (),
    wait: Annotated[bool, Parameter(negative=())] = False,
    server: Server = HERE,
) -> int:
    """Register a MAP by its URN or image reference.

    Parameters
    ----------
    wait
        Return when its manifests were read; exit code 1 when it is invalid.
    """
    async with server.client() as gurney:
        document = await gurney.maps.register(urn, name=name, labels=dict(each.split("=", 1) for each in label))
        if wait:
            document = await gurney.maps.settled(document["id"])
        show(document, as_json=server.json)
        return 1 if document["state"] == "invalid" else 0


@app.command
async def ls(
    *, name: str | None = None, state: str | None = None, urn: str | None = None, server: Server = HERE
) -> None:
    """List MAPs, newest first."""
    async with server.client() as gurney:
        items = gurney.maps.list(name=name, state=state, urn=urn)
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
async def rm(ref: str, *, server: Server = HERE) -> None:
    """Unregister a MAP."""
    async with server.client() as gurney:
        await gurney.maps.delete(ref)
        if server.json:
            print_json({"unregistered": ref})
