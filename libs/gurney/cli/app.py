"""The commands, in one tree."""

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from cyclopts import App

from gurney.cli import access, jobs, payloads, run
from gurney.cli import maps as map_commands
from gurney.cli.connect import default_data

app = App(name="gurney", help="Run medical AI applications (MAPs) on the machines that you have.")


@app.command
def up(*, data: Path | None = None, port: int | None = None, maps: Path | None = None) -> int:
    """Run the embedded server: everything in one process, nothing to set up. Ctrl-C stops it; runs go on.

    Parameters
    ----------
    data
        Folder of everything that the server keeps; by default the platform's user data folder.
    port
        Port on the loopback address; 0 takes a free one. By default 8350.
    maps
        Folder of folder MAPs, registered as urn:gurney:dir:<name>.
    """
    from gurney.settings import Settings

    asked: dict[str, Any] = {"data": data or default_data(), "port": port, "maps": maps}
    settings = Settings(**{name: value for name, value in asked.items() if value is not None})
    (server,) = entry_points(group="gurney.servers", name="up")
    return int(server.load()(settings))


for group in (map_commands.app, payloads.app, jobs.app, access.handlers, access.nodes, access.tokens):
    app.command(group)
app.command(run.run)
app.command(access.events)
app.command(access.whoami)
