"""The commands, in one tree."""

from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App, CycloptsError
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from gurney.cli import access, jobs, payloads, run
from gurney.cli import maps as map_commands
from gurney.cli.connect import default_data
from gurney.cli.output import invalid
from gurney.errors import Invalid

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
def up(*, data: Path | None = None, port: int | None = None, maps: Path | None = None) -> int:
    """Run the embedded server: everything in one process, nothing to set up. Ctrl-C stops it; runs go on.

    Parameters
    ----------
    data
        Folder of everything that the server keeps; by default the platform's user data folder.
    port
        Port on the loopback address; 0 takes a free one. By default 8350.
    maps
        Folder of folder MAPs, registered as `urn:gurney:dir:<name>`.
    """
    asked = {"data": data, "port": port, "maps": maps}
    settings = _settings({name: value for name, value in asked.items() if value is not None})
    (server,) = entry_points(group="gurney.servers", name="up")
    return int(server.load()(settings))


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
app.command(access.events)
app.command(access.whoami)
