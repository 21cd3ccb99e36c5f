"""Payloads: create, list, read, name, delete."""

from typing import Literal

from aiohttp import web

from gurney.errors import FieldError, Invalid
from gurney.model.common import Ref, Rename, SetName
from gurney.model.payload import CreatePayload, PayloadCreate, PayloadList
from gurney.subjects import PAYLOAD_CREATE, PAYLOAD_DELETE, PAYLOAD_GET, PAYLOAD_LIST, PAYLOAD_RENAME
from services.edge import respond, unpacking
from services.edge.call import Call
from services.edge.parse import Labelled
from services.edge.views import archives


class PayloadsQuery(Labelled):
    name: str | None = None
    state: Literal["open", "draft"] | None = None


async def create(call: Call) -> web.Response:
    """Make a payload of a JSON body, or of an archive and the query parameters."""
    if unpacking.is_archive(call.request):
        return await archives.create(call)
    if call.request.query:
        raise Invalid(
            "query parameters go with an archive; with JSON they are fields of the body",
            [FieldError(field=name, message="belongs into the JSON body") for name in set(call.request.query)],
        )
    body = await call.body(CreatePayload)
    question = PayloadCreate(caller=call.caller, body=body, idempotency=call.idempotency())
    return respond.made(await call.ask(PAYLOAD_CREATE, question), "/v1/payloads")


async def index(call: Call) -> web.Response:
    question = PayloadList(caller=call.caller, **call.query(PayloadsQuery).filters())
    return respond.page(await call.ask(PAYLOAD_LIST, question))


async def get(call: Call) -> web.Response:
    return respond.document(await call.ask(PAYLOAD_GET, Ref(caller=call.caller, ref=call.text("payload"))))


async def delete(call: Call) -> web.Response:
    await call.ask(PAYLOAD_DELETE, Ref(caller=call.caller, ref=call.text("payload")), slow=True)
    return respond.nothing()


async def put_name(call: Call) -> web.Response:
    name = (await call.body(SetName)).name
    question = Rename(caller=call.caller, ref=call.text("payload"), name=name)
    return respond.document(await call.ask(PAYLOAD_RENAME, question))


async def delete_name(call: Call) -> web.Response:
    await call.ask(PAYLOAD_RENAME, Rename(caller=call.caller, ref=call.text("payload"), name=None))
    return respond.nothing()
