"""What the server says of itself: OpenAPI, AsyncAPI, and a page for people that works offline."""

import asyncio
import json
from functools import cache

from aiohttp import web

from gurney import docs_page
from services.edge import asyncapi, openapi, respond
from services.edge.call import Call, Route


async def openapi_json(call: Call) -> web.Response:
    return respond.json_bytes(await asyncio.to_thread(_openapi, tuple(call.edge.routes)))


async def asyncapi_json(call: Call) -> web.Response:
    del call
    return respond.json_bytes(await asyncio.to_thread(_asyncapi))


async def page(call: Call) -> web.Response:
    del call
    return await asyncio.to_thread(docs_page.page)


@cache
def _openapi(routes: tuple[Route, ...]) -> bytes:
    return json.dumps(openapi.document(routes)).encode()


@cache
def _asyncapi() -> bytes:
    return json.dumps(asyncapi.document()).encode()
