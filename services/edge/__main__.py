"""The composition root of the edge."""

import contextlib
from collections.abc import AsyncIterator

from gurney.documents.port import Documents
from gurney.service import Parts
from gurney.settings import Settings
from services.edge.auth import Authenticator, ensure_admin_token
from services.edge.call import Edge
from services.edge.routes import ROUTES
from services.edge.server import EdgeService, HttpServer
from services.edge.waiters import Waiters


def build(settings: Settings, *, documents: Documents, admin_token: str | None = None) -> EdgeService:
    """Return the service; `admin_token` is a secret that is an administrator's from its first request on."""
    service = EdgeService(settings, documents)
    edge = Edge(
        settings=settings,
        bus=service.bus,
        store=service.store,
        authenticator=Authenticator(documents),
        waiters=Waiters(service.bus),
        routes=ROUTES,
    )
    service.http = HttpServer(edge)

    @contextlib.asynccontextmanager
    async def administrator() -> AsyncIterator[None]:
        if admin_token:
            await ensure_admin_token(documents, admin_token)
        yield

    service.does(Parts(resources=[administrator(), edge.waiters, service.http]))
    return service
