"""`gurney serve mis`: one MAP behind MONAI Inference Service's interface, until a signal."""

import asyncio

from gurney import facade, telemetry
from gurney.client import AsyncClient
from gurney.settings import Settings
from services.mis.registering import ready
from services.mis.server import Mis
from services.mis.settings import MisSettings, folder_of


def serve(settings: Settings) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code. Raises what it cannot start for."""
    telemetry.setup(settings, "mis")
    mis = MisSettings.load()
    facade.until_signal(lambda stop: _serve(mis, settings.start_timeout, stop))
    return 0


async def _serve(settings: MisSettings, patience_s: float, stop: asyncio.Event) -> None:
    async with AsyncClient(settings.server, settings.token.get_secret_value()) as gurney:
        starting = asyncio.create_task(facade.once_there(lambda: ready(gurney, settings), patience_s))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            found = starting.result()
            mis = Mis(settings, gurney, found["id"], folder_of(found["description"]["output_path"]))
            # A client that goes away cancels his request.
            listening = facade.listening(mis.application(), settings.host, settings.port, handler_cancellation=True)
            async with listening as (host, port):
                facade.say(f"Gurney serves mis on http://{host}:{port}{settings.base_path}")
                await stop.wait()
        starting.cancel()
        stopping.cancel()
