"""For those who watch over a process of services: is it alive, is it ready, what are its figures."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, Self

from aiohttp import hdrs, web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gurney.errors import GurneyError, Unavailable
from gurney.model.common import AWAY, READY, Health
from gurney.settings import Settings

STARTS = "starts"
#: Seconds after which a part that has not answered counts as away.
ANSWERS_WITHIN_S = 2.0

#: What something stands on: each raises where it is away.
Checks = Mapping[str, Callable[[], Awaitable[object]]]


class Serving(Protocol):
    """What serves, and knows what it stands on."""

    @property
    def ready(self) -> bool: ...

    async def health(self) -> Health:
        """Tell which of the parts that it stands on are there."""


#: What a process serves; None: it does not serve yet, or no more.
Watched = Mapping[str, Serving | None]


class WatchServer:
    """`/livez`, `/readyz` and `/metrics` over HTTP, as a context."""

    def __init__(self, settings: Settings, watched: Watched) -> None:
        self._host, self._port = settings.host, settings.metrics_port
        self._watched = watched
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/livez", self._live)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/metrics", _metrics)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            await runner.cleanup()
            raise Unavailable(f"metrics_port: cannot listen on {self._host}:{self._port}: {error.strerror}") from error
        self._runner = runner
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._runner:
            await self._runner.cleanup()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._runner.addresses[0][1]) if self._runner else 0

    async def _live(self, _: web.Request) -> web.Response:
        return _told(Health(status="alive"))

    async def _ready(self, _: web.Request) -> web.Response:
        return _told(await health_of(self._watched))


async def health_of(watched: Watched) -> Health:
    """Return which of the services serve, and which of the parts that they stand on are there."""
    parts = {name: READY if service and service.ready else STARTS for name, service in watched.items()}
    for health in await asyncio.gather(*[service.health() for service in watched.values() if service]):
        parts |= {part: said for part, said in health.parts.items() if parts.get(part) != AWAY}
    return Health(status=READY if all(said == READY for said in parts.values()) else AWAY, parts=parts)


async def checked(checks: Checks) -> Health:
    """Return which of these parts are there."""
    told = await asyncio.gather(*[_there(check) for check in checks.values()])
    return Health(
        status=READY if all(said == READY for said in told) else AWAY, parts=dict(zip(checks, told, strict=True))
    )


async def _there(check: Callable[[], Awaitable[object]]) -> str:
    try:
        async with asyncio.timeout(ANSWERS_WITHIN_S):
            await check()
    except (GurneyError, TimeoutError):
        return AWAY
    return READY


def _told(health: Health) -> web.Response:
    return web.Response(
        body=health.encode(), content_type="application/json", status=503 if health.status == AWAY else 200
    )


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=await asyncio.to_thread(generate_latest), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE_LATEST})
