"""`gurney serve`: run services until a signal, then let them finish what they have begun."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

from gurney import telemetry
from gurney.errors import NatsUnavailable
from gurney.settings import Settings
from gurney.watch import WatchServer
from services.serve.composition import Composition
from services.serve.starting import Started, start_all, stop_all

if sys.platform == "win32":
    from asyncio import run
else:
    from uvloop import run


#: What stands before older clients, and is a client itself: it is served alone.
FACADES = ("mis", "inference-server")


def serve(settings: Settings, names: Sequence[str]) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code. Raises what it cannot start for, or cannot go on for."""
    if len(names) == 1 and names[0] in FACADES:
        return _serve_facade(settings, names[0])
    telemetry.setup(settings, "-".join(names))
    run(_serve(settings, names))
    return 0


def _serve_facade(settings: Settings, name: str) -> int:
    if name == "mis":
        from services.mis.__main__ import serve as serve_mis

        return serve_mis(settings)
    from services.inference_server.__main__ import serve as serve_inference_server

    return serve_inference_server(settings)


async def _serve(settings: Settings, names: Sequence[str]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        composition = Composition(settings, names)
        stack.push_async_callback(composition.close)
        watched: Started = dict.fromkeys(composition.names)
        if settings.metrics_port is not None:
            await stack.enter_async_context(WatchServer(settings, watched))
        stack.push_async_callback(stop_all, watched)
        if await _first(start_all(composition.builds(), watched, settings.start_timeout), stop.wait()) == 0:
            _say(f"Gurney serves {', '.join(watched)}")
            await _until_stopped(watched, stop)
        _say(f"Gurney stops {', '.join(watched)}")


async def _until_stopped(watched: Started, stop: asyncio.Event) -> None:
    """Return when asked to stop; raises where NATS has ended a connection for good: the user is no longer let in."""
    services = [service for service in watched.values() if service]
    ended = await _first(stop.wait(), *(service.bus.connection.ended.wait() for service in services))
    if ended:
        raise NatsUnavailable(f"NATS has ended the connection of {services[ended - 1].name}")


async def _first(*waits: Coroutine[Any, Any, object]) -> int:
    """Return which of these ended first, the others cancelled; raises what it raised."""
    tasks = [asyncio.ensure_future(each) for each in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        first = next(number for number, task in enumerate(tasks) if task.done())
        await tasks[first]
        return first
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
