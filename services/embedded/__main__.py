"""`gurney up`: run the embedded server until a signal."""

import asyncio
import gc
import signal
import sys

from gurney import telemetry
from gurney.settings import Settings
from services.embedded.server import EmbeddedServer

if sys.platform == "win32":
    from asyncio import run
else:
    from uvloop import run


def up(settings: Settings) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code. Raises what it cannot start for."""
    telemetry.setup(settings, "embedded")
    run(_serve(settings))
    return 0


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with EmbeddedServer(settings) as server:
        gc.collect()
        gc.freeze()  # what is there now stays: no collection needs to look at it again
        sys.stdout.write(f"Gurney is ready at {server.url} (administrator's token: {server.folder.token})\n")
        sys.stdout.flush()
        await stop.wait()
        sys.stdout.write("Gurney stops; runs go on until the next start\n")
