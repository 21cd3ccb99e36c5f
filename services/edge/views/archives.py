"""Payloads as archives: a zip or tar in makes one, and one goes out as a zip or tar."""

from aiohttp import web
from pydantic import ValidationError

from gurney.model.common import Ref
from gurney.model.payload import CreatePayload
from gurney.subjects import PAYLOAD_GET
from services.edge import respond, unpacking
from services.edge.call import Call
from services.edge.packing import send_archive
from services.edge.parse import Label, Query, invalid


class ArchiveQuery(Query):
    """What the JSON body says otherwise."""

    REPEATED = frozenset({"label"})

    name: str | None = None
    keep: bool = False
    label: tuple[Label, ...] = ()

    def body(self) -> CreatePayload:
        labels = dict(label.split("=", 1) for label in self.label)
        try:
            return CreatePayload(name=self.name, keep=self.keep, labels=labels)
        except ValidationError as error:
            raise invalid(error, flat=True) from error


async def create(call: Call) -> web.Response:
    """Make a payload of an archive's files; whatever goes wrong, nothing stays."""
    return respond.made(await unpacking.make(call, call.query(ArchiveQuery).body()), "/v1/payloads")


async def get(call: Call) -> web.StreamResponse:
    payload = await call.ask(PAYLOAD_GET, Ref(caller=call.caller, ref=call.text("payload")))
    return await send_archive(call, payload.id, payload.name or payload.id)
