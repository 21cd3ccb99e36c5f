"""`gurney serve mis`: one MAP behind MONAI Inference Service's interface, until a signal."""

import asyncio
import signal
import sys

from aiohttp import web

from gurney import telemetry
from gurney.client import AsyncClient
from gurney.client.http import Json
from gurney.clock import monotonic
from gurney.errors import Unavailable
from gurney.settings import Settings
from services.mis.registering import ready
from services.mis.server import Mis
from services.mis.settings import MisSettings, folder_of, load

#: Seconds between two tries to reach Gurney at the start.
PAUSE_S = 0.5
#: Seconds that an open request gets at the end.
SHUTDOWN_S = 10.0

_log = telemetry.log("mis")


def serve(settings: Settings) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code. Raises what it cannot start for."""
    telemetry.setup(settings, "mis")
    asyncio.run(_serve(load(), settings.start_timeout))
    return 0


async def _serve(settings: MisSettings, patience_s: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with AsyncClient(settings.server, settings.token.get_secret_value()) as gurney:
        starting = asyncio.create_task(_ready(gurney, settings, patience_s))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            found = starting.result()
            mis = Mis(settings, gurney, found["id"], folder_of(found["description"]["output_path"]))
            await _listen(settings, mis, stop)
        starting.cancel()
        stopping.cancel()


async def _ready(gurney: AsyncClient, settings: MisSettings, patience_s: float) -> Json:
    """Return the MAP; a server that is away is asked again for a while."""
    deadline = monotonic() + patience_s
    while True:
        try:
            return await ready(gurney, settings)
        except Unavailable as error:
            if monotonic() >= deadline:
                raise
            _log.info("waits", reason=error.code)
        await asyncio.sleep(PAUSE_S)


async def _listen(settings: MisSettings, mis: Mis, stop: asyncio.Event) -> None:
    # A client that goes away cancels his request.
    runner = web.AppRunner(mis.application(), access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, settings.host, settings.port).start()
        except OSError as error:
            raise Unavailable(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from error
        host, port = runner.addresses[0][:2]
        sys.stdout.write(f"Gurney serves mis on http://{host}:{port}{settings.base_path}\n")
        sys.stdout.flush()
        await stop.wait()
    finally:
        await runner.cleanup()
