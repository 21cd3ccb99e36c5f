"""MAPs: register, list, read, name, approve, unregister."""

from aiohttp import web

from gurney.model.common import Ref, Rename, SetName
from gurney.model.map import MapList, MapRegister, MapState, RegisterMap
from gurney.subjects import MAP_APPROVE, MAP_GET, MAP_LIST, MAP_REGISTER, MAP_RENAME, MAP_UNREGISTER
from services.edge import respond
from services.edge.call import Call
from services.edge.parse import DryRun, Labelled


class MapsQuery(Labelled):
    name: str | None = None
    state: MapState | None = None
    urn: str | None = None


async def register(call: Call) -> web.Response:
    body = await call.body(RegisterMap)
    dry_run = call.query(DryRun).dry_run
    key = None if dry_run else call.idempotency()
    question = MapRegister(caller=call.caller, body=body, idempotency=key, dry_run=dry_run)
    found = await call.ask(MAP_REGISTER, question, slow=True)
    return respond.dry(found) if dry_run else respond.made(found, "/v1/maps", 202)


async def index(call: Call) -> web.Response:
    question = MapList(caller=call.caller, **call.query(MapsQuery).filters())
    return respond.page(await call.ask(MAP_LIST, question))


async def get(call: Call) -> web.Response:
    return respond.document(await call.ask(MAP_GET, Ref(caller=call.caller, ref=call.text("map"))))


async def put_name(call: Call) -> web.Response:
    name = (await call.body(SetName)).name
    question = Rename(caller=call.caller, ref=call.text("map"), name=name)
    return respond.document(await call.ask(MAP_RENAME, question))


async def delete_name(call: Call) -> web.Response:
    await call.ask(MAP_RENAME, Rename(caller=call.caller, ref=call.text("map"), name=None))
    return respond.nothing()


async def approve(call: Call) -> web.Response:
    return respond.document(await call.ask(MAP_APPROVE, Ref(caller=call.caller, ref=call.text("map"))))


async def unregister(call: Call) -> web.Response:
    await call.ask(MAP_UNREGISTER, Ref(caller=call.caller, ref=call.text("map")), slow=True)
    return respond.nothing()
