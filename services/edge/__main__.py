"""The composition root of the edge."""

import contextlib
from collections.abc import AsyncIterator

from gurney.documents.port import Documents
from gurney.service import Parts
from gurney.settings import Settings
from gurney.subjects import EDGE_TOKENS
from gurney.transfer import pooled
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

    async def tokens_changed(_: str, __: bytes) -> None:
        edge.authenticator.forget_all()

    peers = service.bus.hearing(EDGE_TOKENS.subject, tokens_changed)
    service.does(Parts(resources=[administrator(), pooled(), peers, edge.waiters, service.http]))
    service.bus.on_reconnect.append(edge.authenticator.forget_all)  # a notice may have been lost
    return service
