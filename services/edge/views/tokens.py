"""Access: tokens, and who I am."""

from aiohttp import web

from gurney import clock, ids
from gurney.errors import Invalid, NotFound, RevisionConflict, Unauthorized
from gurney.model.access import CreateToken, IssuedToken
from gurney.subjects import EDGE_TOKENS
from services.edge import repository, respond
from services.edge.auth import new_token
from services.edge.call import Call
from services.edge.parse import Paged
from services.edge.repository import TOKENS

PREFIX = "gurney_"


async def create(call: Call) -> web.Response:
    body = await call.body(CreateToken)
    if body.expires_at and body.expires_at <= clock.now():
        raise Invalid.field("expires_at", "must lie in the future")
    secret = PREFIX + ids.new_secret()
    token = new_token(secret, body.subject, body.role, created_by=call.caller.subject, project=body.project)
    token = await call.edge.store.insert(TOKENS, token.but(name=body.name, expires_at=body.expires_at))
    return respond.made(IssuedToken(**dict(token), token=secret), "/v1/tokens")


async def index(call: Call) -> web.Response:
    asked = call.query(Paged)
    return respond.page(await repository.tokens(call.edge.store.documents, asked.limit, asked.cursor))


async def delete(call: Call) -> web.Response:
    token = await call.edge.store.get(TOKENS, call.id("token", "tok"))
    try:
        await call.edge.store.remove(TOKENS, token)
    except RevisionConflict as error:  # tokens never change: another request removed it
        raise NotFound(f"there is no {token.id}") from error
    call.edge.authenticator.forget(token)
    await call.edge.bus.tell_peers(EDGE_TOKENS)
    return respond.nothing()


async def whoami(call: Call) -> web.Response:
    token = await call.edge.store.documents.get(TOKENS, call.caller.token)
    if token is None:
        raise Unauthorized("the token is not known or has expired")
    return respond.document(token)
