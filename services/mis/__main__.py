"""`gurney serve mis`: one MAP behind MONAI Inference Service's interface, until a signal."""

from functools import partial

from gurney import facade, telemetry
from gurney.client import AsyncClient
from gurney.settings import Settings
from services.mis.registering import ready
from services.mis.server import Mis
from services.mis.settings import MisSettings, folder_of


def serve(settings: Settings) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code. Raises what it cannot start for."""
    telemetry.setup(settings, "mis")
    facade.until_signal(_serve(MisSettings.load(), settings))
    return 0


async def _serve(mine: MisSettings, settings: Settings) -> None:
    async with (
        AsyncClient(mine.server, mine.token.get_secret_value()) as gurney,
        facade.watched(settings, "mis") as watched,
    ):
        found = await facade.once_there(lambda: ready(gurney, mine), settings.start_timeout)
        mis = Mis(mine, gurney, found["id"], folder_of(found["description"]["output_path"]))
        # A client that goes away cancels his request.
        listening = facade.listening(mis.application(), mine.host, mine.port, handler_cancellation=True)
        async with listening as (host, port):
            facade.say(f"Gurney serves mis on http://{host}:{port}{mine.base_path}")
            await watched.serve({"gurney": partial(facade.answers, gurney)})
