"""Starting with patience: what a service stands on may come after it, and what is wrongly set up never comes."""

import asyncio
from collections.abc import Iterator, Mapping

from gurney import telemetry
from gurney.clock import monotonic
from gurney.errors import Unavailable
from gurney.service import Service
from services.serve.composition import Build

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0

#: The services of a process; None: it does not serve yet, or no more.
Started = dict[str, Service | None]

_log = telemetry.log("serve")


async def start_all(builds: Mapping[str, Build], watched: Started, patience_s: float) -> None:
    """Start services side by side; `watched` gets each that serves. Raises the first fault; the rest is stopped."""
    tasks = [asyncio.create_task(_start(name, build, watched, patience_s)) for name, build in builds.items()]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await stop_all(watched)
        raise


async def stop_all(watched: Started) -> None:
    """Stop what serves, the last in the order of starting first: each finishes what it has begun."""
    for name in reversed(watched):
        service, watched[name] = watched[name], None
        if service:
            await service.__aexit__(None, None, None)


async def _start(name: str, build: Build, watched: Started, patience_s: float) -> None:
    """Try until it serves; raises what is no matter of time at once, and what is after `patience_s`."""
    deadline = monotonic() + patience_s
    told = ""
    for pause in _pauses():
        service = build()
        try:
            watched[name] = await service.__aenter__()
        except Unavailable as error:
            if error.lasting or monotonic() + pause > deadline:
                raise
            if str(error) != told:
                told = str(error)
                _log.warning("waits", service=name, reason=told)
        else:
            return
        await asyncio.sleep(pause)


def _pauses() -> Iterator[float]:
    pause = FIRST_PAUSE_S
    while True:
        yield pause
        pause = min(LONGEST_PAUSE_S, 2 * pause)
