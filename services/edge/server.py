"""The HTTP server, and the edge as a service that says where it listens."""

import errno
import re
from typing import Self

from aiohttp import web

from gurney.documents.port import Documents
from gurney.errors import Unavailable
from gurney.service import Service
from gurney.settings import Settings
from services.edge.call import Edge
from services.edge.connections import Runner
from services.edge.middleware import bind, note_start, observed
from services.edge.parse import MAX_JSON
from services.edge.repository import TOKENS

#: Seconds that open requests get when the server stops.
SHUTDOWN_S = 10.0

_PART = re.compile(r"\{(\w+)\}")


class HttpServer:
    """Serves the table of routes, as a context."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        settings = self._edge.settings
        runner = Runner(application(self._edge), shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        try:
            reuse = settings.reuse_port or None
            await web.TCPSite(runner, settings.host, settings.port, backlog=1024, reuse_port=reuse).start()
        except OSError as error:
            await runner.cleanup()
            why = "another program does, give another --port" if error.errno == errno.EADDRINUSE else error.strerror
            raise Unavailable(f"cannot listen on {settings.host}:{settings.port}: {why}") from error
        self._runner = runner
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._edge.stopping.set()
        self._edge.waiters.wake_all()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def url(self) -> str:
        """Where a client of this host reaches the server; empty while it does not serve."""
        if self._runner is None or not self._runner.addresses:
            return ""
        host, port = self._runner.addresses[0][:2]
        if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
            host = "127.0.0.1"
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class EdgeService(Service):
    """The edge. `url` says where it listens once it is entered."""

    def __init__(self, settings: Settings, documents: Documents) -> None:
        super().__init__("edge", settings, documents, [TOKENS])
        self.http: HttpServer | None = None

    @property
    def url(self) -> str:
        return self.http.url if self.http else ""


def application(edge: Edge) -> web.Application:
    """Return the application of a table of routes."""
    app = web.Application(client_max_size=MAX_JSON, middlewares=[observed])
    app.on_response_prepare.append(note_start)
    for route in edge.routes:
        app.router.add_route(route.method, _PART.sub(_pattern, route.path), bind(edge, route))
    return app


def _pattern(part: re.Match[str]) -> str:
    """Return aiohttp's pattern: a name may have any character but `/`, a path any at all."""
    pattern = r"[\s\S]*" if part[1] == "path" else "[^/]+"
    return f"{{{part[1]}:{pattern}}}"
