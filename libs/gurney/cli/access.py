"""`gurney handler`, `node`, `token`, `events`, `whoami`."""

from datetime import datetime
from typing import Annotated

from cyclopts import App, Parameter

from gurney.cli.connect import HERE, Server
from gurney.cli.output import out, print_json, show, show_list

handlers = App(name="handler", help="Job handlers: who is told when jobs end.")
nodes = App(name="node", help="Nodes and their room.")
tokens = App(name="token", help="Access tokens (administrator).")


@handlers.command(name="create")
async def create_handler(
    url: str, *, event: Annotated[tuple[str, ...], Parameter(negative=())] = (), server: Server = HERE
) -> None:
    """Register a job handler; its secret is shown this once."""
    async with server.client() as gurney:
        options = {"events": list(event)} if event else {}
        show(await gurney.handlers.create(url, **options), as_json=server.json)


@handlers.command(name="ls")
async def list_handlers(*, server: Server = HERE) -> None:
    """List job handlers."""
    async with server.client() as gurney:
        await show_list(gurney.handlers.list(), ("id", "url", "events", "state", "created_at"), as_json=server.json)


@handlers.command(name="test")
async def try_handler(handler: str, *, server: Server = HERE) -> None:
    """Send an event `handler.test`."""
    async with server.client() as gurney:
        show(await gurney.handlers.test(handler), as_json=server.json)


@handlers.command(name="deliveries")
async def list_deliveries(handler: str, *, server: Server = HERE) -> None:
    """List deliveries to a job handler, newest first."""
    async with server.client() as gurney:
        columns = ("id", "event", "state", "attempts", "next_attempt_at")
        await show_list(gurney.handlers.deliveries(handler), columns, as_json=server.json)


@handlers.command(name="rm")
async def remove_handler(handler: str, *, server: Server = HERE) -> None:
    """Remove a job handler."""
    async with server.client() as gurney:
        await gurney.handlers.delete(handler)
        if server.json:
            print_json({"deleted": handler})


@nodes.command(name="ls")
async def list_nodes(*, server: Server = HERE) -> None:
    """List nodes with their capacity and free room."""
    async with server.client() as gurney:
        await show_list(gurney.nodes.list(), ("id", "state", "capacity", "free", "last_seen_at"), as_json=server.json)


@nodes.command(name="show")
async def show_node(node: str, *, server: Server = HERE) -> None:
    """Show a node."""
    async with server.client() as gurney:
        show(await gurney.nodes.get(node), as_json=server.json)


@nodes.command(name="drain")
async def drain_node(node: str, *, server: Server = HERE) -> None:
    """Have no new jobs placed on a node (administrator); those that it has go on."""
    async with server.client() as gurney:
        show(await gurney.nodes.drain(node), as_json=server.json)


@nodes.command(name="resume")
async def resume_node(node: str, *, server: Server = HERE) -> None:
    """Have jobs placed on a node again (administrator)."""
    async with server.client() as gurney:
        show(await gurney.nodes.resume(node), as_json=server.json)


@tokens.command(name="create")
async def create_token(
    subject: str,
    role: str,
    *,
    name: str | None = None,
    project: str | None = None,
    expires_at: datetime | None = None,
    server: Server = HERE,
) -> None:
    """Make a token for a subject; roles are clinician, developer and administrator. It is shown this once.

    Parameters
    ----------
    expires_at
        When it is good no more, such as 2027-03-01; for ever where it is not given.
    """
    until = expires_at.astimezone().isoformat() if expires_at else None
    asked = {"name": name, "project": project, "expires_at": until}
    options = {key: value for key, value in asked.items() if value is not None}
    async with server.client() as gurney:
        show(await gurney.tokens.create(subject, role, **options), as_json=server.json)


@tokens.command(name="ls")
async def list_tokens(*, server: Server = HERE) -> None:
    """List tokens, without their secrets."""
    async with server.client() as gurney:
        columns = ("id", "subject", "name", "role", "project", "created_at", "expires_at")
        await show_list(gurney.tokens.list(), columns, as_json=server.json)


@tokens.command(name="rm")
async def remove_token(token: str, *, server: Server = HERE) -> None:
    """Delete a token: whoever holds it gets in no more."""
    async with server.client() as gurney:
        await gurney.tokens.delete(token)
        if server.json:
            print_json({"deleted": token})


async def events(*, after: str | None = None, server: Server = HERE) -> None:
    """Follow all events that the token may see, for ever; `after` is the id of the last one seen."""
    async with server.client() as gurney:
        async for event in gurney.events.follow(last_event_id=after):
            if server.json:
                print_json({"id": event.id, "type": event.type, "data": event.data})
            else:
                ident = event.data.get("id", "") if isinstance(event.data, dict) else ""
                out.print(f"{event.id}  {event.type:<16}  {ident}", markup=False)


async def whoami(*, server: Server = HERE) -> None:
    """Show whose token this is."""
    async with server.client() as gurney:
        show(await gurney.whoami(), as_json=server.json)
