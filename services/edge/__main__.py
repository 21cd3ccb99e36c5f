"""The composition root of the edge."""

import contextlib
from collections.abc import AsyncIterator

from gurney.credentials import client_tokens
from gurney.documents.port import Documents
from gurney.model.access import Role
from gurney.service import Parts
from gurney.settings import Settings
from gurney.subjects import EDGE_TOKENS
from gurney.transfer import pooled
from services.edge.auth import ADMIN, Authenticator, ensure_token
from services.edge.call import Edge
from services.edge.routes import ROUTES
from services.edge.server import EdgeService, HttpServer
from services.edge.waiters import Waiters


def build(settings: Settings, *, documents: Documents, admin_token: str | None = None) -> EdgeService:
    """Return the service; `admin_token` is a secret that is an administrator's from its first request on.

    Raises `Invalid` where a token that the settings promise a client is not there.
    """
    tokens = client_tokens(settings)
    if admin_token:
        tokens[ADMIN] = admin_token, Role.ADMINISTRATOR
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
    async def known() -> AsyncIterator[None]:
        for subject, (secret, role) in tokens.items():
            await ensure_token(documents, secret, subject, role)
        yield

    async def tokens_changed(_: str, __: bytes) -> None:
        edge.authenticator.forget_all()

    peers = service.bus.hearing(EDGE_TOKENS.subject, tokens_changed)
    service.does(Parts(resources=[known(), pooled(), peers, edge.waiters, service.http]))
    service.bus.on_reconnect.append(edge.authenticator.forget_all)  # a notice may have been lost
    return service
