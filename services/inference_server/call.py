"""A request on its way: what every view gets, and what its route says of it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel

from gurney.store import Store
from services.inference_server.documents import Format
from services.inference_server.models import Models
from services.inference_server.settings import InferenceServerSettings
from services.inference_server.tasks import Tasks


@dataclass(frozen=True)
class Server:
    """What views ask."""

    settings: InferenceServerSettings
    #: Largest file that may be posted, in bytes.
    most: int
    store: Store
    models: Models
    tasks: Tasks


@dataclass(frozen=True)
class Call:
    server: Server
    route: "Route"
    request: web.Request
    #: As the route's model says.
    query: Any
    #: The file that was posted.
    archive: Path | None

    def text(self, name: str) -> str:
        """Return a part of the path."""
        return self.request.match_info[name]


View = Callable[[Call], Awaitable[web.StreamResponse]]


class Query(BaseModel):
    """Parameters of a route; others are ignored."""


@dataclass(frozen=True)
class Route:
    method: str
    path: str
    view: View
    #: One sentence for people.
    does: str
    query: type[Query] = Query
    #: Whether a file is posted with it.
    file: Literal["none", "needed", "optional"] = "none"
    #: Its answer is an archive.
    sends_archive: bool = False
    #: Of what is posted and sent.
    format: Format = "zip"
    #: It makes something: what is away is waited for inside, not by asking for all of it again.
    creates: bool = False
    #: Version 2.0 asks for a token here.
    needs_token: bool = False

    @property
    def part(self) -> str:
        """Return the name of the file's part."""
        return f"{self.format}_file"
