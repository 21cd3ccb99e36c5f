"""Nodes, with what they have and what is free there; which of them take jobs."""

from aiohttp import web

from gurney.model.common import Ref
from gurney.model.run import NodeList
from gurney.subjects import SCHEDULER_DRAIN, SCHEDULER_NODE, SCHEDULER_NODES, SCHEDULER_RESUME
from services.edge import respond
from services.edge.call import Call
from services.edge.parse import Paged


async def index(call: Call) -> web.Response:
    question = NodeList(**call.query(Paged).filters())
    return respond.page(await call.ask(SCHEDULER_NODES, question))


async def get(call: Call) -> web.Response:
    return respond.document(await call.ask(SCHEDULER_NODE, _ref(call)))


async def drain(call: Call) -> web.Response:
    return respond.document(await call.ask(SCHEDULER_DRAIN, _ref(call)))


async def resume(call: Call) -> web.Response:
    return respond.document(await call.ask(SCHEDULER_RESUME, _ref(call)))


def _ref(call: Call) -> Ref:
    return Ref(caller=call.caller, ref=call.text("node"))
