"""The commands, in one tree."""

import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App, CycloptsError
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from gurney.cli import access, compat, jobs, payloads, run
from gurney.cli import maps as map_commands
from gurney.cli.connect import default_data
from gurney.cli.credentials import credentials
from gurney.cli.output import invalid
from gurney.cli.simulate import simulate
from gurney.errors import GurneyError, Invalid, Unavailable

if TYPE_CHECKING:
    from gurney.settings import Settings


def _one_line(error: CycloptsError) -> Text:
    return Text(f"gurney: {' '.join(str(error).split())}")


app = App(
    name="gurney",
    help="Run medical AI applications (MAPs) on the machines that you have.",
    error_formatter=_one_line,
    error_console=Console(stderr=True, highlight=False, soft_wrap=True),
)


@app.command
def up(*, data: Path | None = None, port: int | None = None, maps: Path | None = None, gpus: str | None = None) -> int:
    """Run the embedded server: everything in one process, nothing to set up. Ctrl-C stops it; runs go on.

    Parameters
    ----------
    data
        Folder of everything that the server keeps; by default the platform's user data folder.
    port
        Port on the loopback address; 0 takes a free one. By default 8350.
    maps
        Folder of folder MAPs, registered as `urn:gurney:dir:<name>`.
    gpus
        GPUs that the node has on paper only, to try things out: 4x80Gi, or 4x80Gi:A100. `none`: no job gets any.
    """
    asked = {"data": data, "port": port, "maps": maps, "gpus": gpus}
    settings = _settings({name: value for name, value in asked.items() if value is not None})
    (server,) = entry_points(group="gurney.servers", name="up")
    return int(server.load()(settings))


@app.command
def serve(
    *service: str,
    wait: float | None = None,
    data: Path | None = None,
    host: str | None = None,
    port: int | None = None,
    maps: Path | None = None,
) -> int:
    """Run one or several services of a deployment in this process: edge, map, payload, job, scheduler, notifier, agent.

    Alone, `mis` and `inference-server` serve the clients of older systems, over another server's API (`docs/migrate`).
    Where its NATS, documents and objects are, the settings say (`docs/settings.md`). SIGTERM takes no new requests and
    gives open ones 10 s. Exit code 78: something is wrongly set up; 75: something did not come in time.

    Parameters
    ----------
    wait
        Seconds for which it waits at its start for what it stands on. By default the setting `start_timeout`.
    data
        Folder of what this host keeps: runs and copies of MAPs.
    host
        Address on which the edge, and what watches, listen.
    port
        Port of the edge; 0 takes a free one.
    maps
        Folder of folder MAPs, the same on all hosts with an agent.
    """
    asked = {"start_timeout": wait, "data": data, "host": host, "port": port, "maps": maps}
    try:
        settings = _settings({name: value for name, value in asked.items() if value is not None})
        (server,) = entry_points(group="gurney.servers", name="serve")
        return int(server.load()(settings, service))
    except GurneyError as error:
        sys.stderr.write(f"gurney: {error}\n")
        return os.EX_TEMPFAIL if isinstance(error, Unavailable) and not error.lasting else os.EX_CONFIG


def _settings(given: dict[str, Any]) -> "Settings":
    """Return the settings: options first, then environment and file; the data folder is the platform's by default."""
    from gurney.settings import Settings

    try:
        settings = Settings(**given)
        if "data" not in settings.model_fields_set:
            settings = Settings(**given, data=default_data())
    except ValidationError as error:
        raise invalid(error) from None
    if settings.maps and not settings.maps.is_dir():
        raise Invalid(f"maps: there is no folder {settings.maps}")
    return settings


for group in (map_commands.app, payloads.app, jobs.app, access.handlers, access.nodes, access.tokens):
    app.command(group)
app.command(run.run)
app.command(compat.app)
app.command(simulate)
app.command(credentials)
app.command(access.events)
app.command(access.whoami)
