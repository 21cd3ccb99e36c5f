"""For those who watch over a process of services: is it alive, is it ready, what are its figures."""

import asyncio
from typing import Self

from aiohttp import hdrs, web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gurney.errors import Unavailable
from gurney.model.common import AWAY, READY, Health
from gurney.service import Service
from gurney.settings import Settings

#: The services of a process; None: it does not serve yet, or no more.
Watched = dict[str, Service | None]

STARTS = "starts"


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


def _told(health: Health) -> web.Response:
    return web.Response(
        body=health.encode(), content_type="application/json", status=503 if health.status == AWAY else 200
    )


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=await asyncio.to_thread(generate_latest), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE_LATEST})
