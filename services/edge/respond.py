"""Answers: documents without their private fields, pages, nothing."""

import json
from typing import TypeVar

from aiohttp import web

from gurney.model.base import Document, Message
from gurney.model.common import Page

JSON = "application/json"
#: Seconds that a client may take for what is written to him: then he is not there any more.
STUCK_S = 30.0

D = TypeVar("D", bound=Document)
M = TypeVar("M", bound=Message)


def document(found: M, status: int = 200, *, headers: dict[str, str] | None = None) -> web.Response:
    """Answer with one document, or with a message that has no private fields."""
    return json_bytes(_public(found), status, headers=headers)


def made(found: D, at: str, status: int = 201) -> web.Response:
    """Answer with a document that was made, and where it is."""
    return document(found, status, headers={"Location": f"{at}/{found.id}"})


def dry(found: D) -> web.Response:
    """Answer with the document that would have been made."""
    return json_bytes(json.dumps(found.public() | {"id": None}).encode())


def page(found: Page[D]) -> web.Response:
    """Answer with a page of a list."""
    items = b",".join([item.public_json(in_list=True) for item in found.items])
    return json_bytes(b'{"items":[%b],"next_cursor":%b}' % (items, json.dumps(found.next_cursor).encode()))


def nothing() -> web.Response:
    return web.Response(status=204)


def json_bytes(body: bytes, status: int = 200, *, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=body, status=status, content_type=JSON, headers=headers)


def _public(found: Message) -> bytes:
    return found.public_json() if isinstance(found, Document) else found.model_dump_json().encode()
