"""Job handlers and the deliveries to them."""

from aiohttp import web

from gurney.model.common import Ref
from gurney.model.handler import (
    CreateHandler,
    DeliveryList,
    HandlerCreate,
    HandlerList,
    HandlerPatch,
    PatchHandler,
)
from gurney.subjects import (
    HANDLER_CREATE,
    HANDLER_DELETE,
    HANDLER_DELIVERIES,
    HANDLER_GET,
    HANDLER_LIST,
    HANDLER_PATCH,
    HANDLER_TEST,
)
from services.edge import respond
from services.edge.call import Call
from services.edge.parse import Paged


async def create(call: Call) -> web.Response:
    body = await call.body(CreateHandler)
    question = HandlerCreate(caller=call.caller, body=body, idempotency=call.idempotency())
    return respond.made(await call.ask(HANDLER_CREATE, question, slow=True), "/v1/handlers")


async def index(call: Call) -> web.Response:
    question = HandlerList(caller=call.caller, **call.query(Paged).filters())
    return respond.page(await call.ask(HANDLER_LIST, question))


async def get(call: Call) -> web.Response:
    return respond.document(await call.ask(HANDLER_GET, _this(call)))


async def patch(call: Call) -> web.Response:
    body = await call.body(PatchHandler)
    question = HandlerPatch(caller=call.caller, handler=call.id("handler", "hdl"), body=body)
    return respond.document(await call.ask(HANDLER_PATCH, question))


async def delete(call: Call) -> web.Response:
    await call.ask(HANDLER_DELETE, _this(call))
    return respond.nothing()


async def test(call: Call) -> web.Response:
    return respond.document(await call.ask(HANDLER_TEST, _this(call)), 202)


async def deliveries(call: Call) -> web.Response:
    question = DeliveryList(caller=call.caller, handler=call.id("handler", "hdl"), **call.query(Paged).filters())
    return respond.page(await call.ask(HANDLER_DELIVERIES, question))


def _this(call: Call) -> Ref:
    return Ref(caller=call.caller, ref=call.id("handler", "hdl"))
