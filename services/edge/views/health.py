"""For those who watch over the server: is it alive, is it ready, what are its figures."""

import asyncio

from aiohttp import hdrs, web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gurney.documents.port import Query
from gurney.errors import FieldError, GurneyError, Unavailable
from gurney.model.access import Role
from gurney.model.common import AWAY, READY, Empty, Health
from gurney.subjects import HEALTH, Operation
from services.edge import respond
from services.edge.auth import allow
from services.edge.call import Call
from services.edge.repository import TOKENS

READY_WITHIN_S = 2.0


async def alive(call: Call) -> web.Response:
    del call
    return respond.document(Health(status="alive"))


async def ready(call: Call) -> web.Response:
    """Tell whether all parts are there: what the edge stands on, each other service, and what those stand on."""
    (nats, documents), others = await asyncio.gather(
        asyncio.gather(call.edge.bus.answers(READY_WITHIN_S), _documents_answer(call)),
        asyncio.gather(*[_asked(call, operation) for operation in HEALTH.values()]),
    )
    parts = {"nats": nats, "documents": documents}
    for service, health in zip(HEALTH, others, strict=True) if nats else ():  # else nobody can say how they are
        parts[service] = health is not None
        for part, said in health.parts.items() if health else ():
            parts[part] = parts.get(part, True) and said != AWAY
    away = [FieldError(field=name, message="does not answer") for name, there in parts.items() if not there]
    if call.edge.stopping.is_set():
        away.append(FieldError(field="server", message="stops"))
    if away:
        raise Unavailable("; ".join(f"{fault.field} {fault.message}" for fault in away), away)
    return respond.document(Health(status="ready", parts=dict.fromkeys(parts, READY)))


async def metrics(call: Call) -> web.Response:
    if not call.edge.settings.metrics_public:
        caller = await call.edge.authenticator.caller(call.request.headers.get(hdrs.AUTHORIZATION))
        allow(caller, frozenset({Role.ADMINISTRATOR}))
    return web.Response(body=await asyncio.to_thread(generate_latest), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE_LATEST})


async def _asked(call: Call, operation: Operation[Empty, Health]) -> Health | None:
    try:
        return await call.edge.bus.request(operation, Empty(), within=READY_WITHIN_S)
    except GurneyError:
        return None


async def _documents_answer(call: Call) -> bool:
    try:
        async with asyncio.timeout(READY_WITHIN_S):
            await call.edge.store.documents.find(TOKENS, Query(limit=1))
    except (GurneyError, TimeoutError):
        return False
    return True
