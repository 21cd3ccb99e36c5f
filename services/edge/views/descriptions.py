"""What the server says of itself: OpenAPI, AsyncAPI, and a page for people that works offline."""

import asyncio
import json
from functools import cache
from pathlib import Path

from aiohttp import web

from services.edge import asyncapi, openapi, respond
from services.edge.call import Call, Route

PAGE = Path(__file__).parents[1] / "docs.html"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


async def openapi_json(call: Call) -> web.Response:
    return respond.json_bytes(await asyncio.to_thread(_openapi, tuple(call.edge.routes)))


async def asyncapi_json(call: Call) -> web.Response:
    del call
    return respond.json_bytes(await asyncio.to_thread(_asyncapi))


async def page(call: Call) -> web.Response:
    del call
    text = await asyncio.to_thread(PAGE.read_text, "utf-8")
    return web.Response(text=text, content_type="text/html", headers={"Content-Security-Policy": POLICY})


@cache
def _openapi(routes: tuple[Route, ...]) -> bytes:
    return json.dumps(openapi.document(routes)).encode()


@cache
def _asyncapi() -> bytes:
    return json.dumps(asyncapi.document()).encode()
