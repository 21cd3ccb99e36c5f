"""What a view gets, and what a row of the table of routes is made of."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel

from gurney import ids
from gurney.bus import Bus
from gurney.errors import NotFound, Unauthorized
from gurney.model.access import Caller, Role
from gurney.model.base import Idempotency, Message
from gurney.settings import Settings
from gurney.store import Store
from gurney.subjects import Operation
from services.edge import parse
from services.edge.auth import Authenticator
from services.edge.waiters import Waiters

B = TypeVar("B", bound=BaseModel)
P = TypeVar("P", bound=parse.Query)
Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)

JSON = "application/json"
#: A body of whatever type.
ANYTHING = "*/*"


@dataclass(frozen=True)
class Route:
    """One row of the table. Router, authorization, OpenAPI document and the matrix of bad input come from it."""

    method: str
    #: `{name}` takes one segment, `{path}` all that is left.
    path: str
    view: "View"
    #: Who may; empty: anybody, without a token.
    roles: frozenset[Role]
    summary: str
    _: KW_ONLY
    #: What it answers when all is well, and with what.
    status: int = 200
    reply: type[BaseModel] | None = None
    #: The reply is a page of these.
    listed: bool = False
    media: str = JSON
    body: type[BaseModel] | None = None
    #: Content types of a body that it takes.
    accepts: tuple[str, ...] = (JSON,)
    query: type[parse.Query] | None = None
    #: Takes `Idempotency-Key`.
    idempotent: bool = False
    #: Takes `Prefer: wait=n`.
    waits: bool = False
    #: Takes `Prefer: respond-async`: then it answers 202.
    may_be_async: bool = False
    #: It needs answers of other services.
    asks: bool = True
    #: Status codes of its own, beside those that follow from the rest.
    also: tuple[int, ...] = ()

    @property
    def takes_body(self) -> bool:
        return self.body is not None or self.accepts != (JSON,)

    @property
    def statuses(self) -> tuple[int, ...]:
        """Every status code that it can answer with, but for defects."""
        codes = {self.status, *self.also}
        if self.roles:
            codes |= {401, 422}  # an unknown query parameter is told on every route
        if self.roles and self.roles != frozenset(Role):
            codes.add(403)
        if "{" in self.path:
            codes.add(404)
        if self.takes_body:
            codes |= {413, 415}
        if self.roles and self.asks:
            codes.add(503)
        return tuple(sorted(codes))


@dataclass
class Edge:
    """What all requests share."""

    settings: Settings
    bus: Bus
    store: Store
    authenticator: Authenticator
    waiters: Waiters
    routes: Sequence[Route]
    #: Requests that wait for the ends of their jobs, as `sync_runs` counts them.
    runs: int = 0
    #: Set when the server stops: whoever holds a request open ends it.
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


class Call:
    """One request on its way through a view."""

    __slots__ = ("_caller", "_query", "_raw", "edge", "request", "route")

    def __init__(self, edge: Edge, request: web.Request, route: Route, caller: Caller | None) -> None:
        self.edge = edge
        self.request = request
        self.route = route
        self._caller = caller
        self._query = parse.query(route.query, request.rel_url.query) if route.roles or route.query else None
        self._raw = b""

    @property
    def caller(self) -> Caller:
        """Who asks; raises `Unauthorized` on a route that needs no token."""
        if self._caller is None:
            raise Unauthorized("a bearer token is needed")
        return self._caller

    def text(self, name: str) -> str:
        """Return a part of the path, decoded."""
        return self.request.match_info[name]

    def id(self, name: str, kind: ids.Kind) -> str:
        """Return a part of the path that must be an id; nothing else is there."""
        text = self.text(name)
        if not ids.is_id(text, kind):
            raise NotFound(f"there is no {name} {text[:80]!r}")
        return text

    def query(self, kind: type[P]) -> P:
        """Return the query parameters, as the table says that they are."""
        if not isinstance(self._query, kind):
            raise TypeError(f"{self.route.method} {self.route.path} takes no {kind.__name__}")
        return self._query

    async def body(self, kind: type[B]) -> B:
        """Return the JSON body, as the table says that it is."""
        if self.route.body is not kind:
            raise TypeError(f"{self.route.method} {self.route.path} takes no {kind.__name__}")
        self._raw = await parse.json_bytes(self.request)
        return parse.body(kind, self._raw)

    def idempotency(self) -> Idempotency | None:
        """Return the client's key with a digest of the JSON body, which must have been read."""
        key = self.request.headers.get(parse.IDEMPOTENCY_KEY)
        if key is None:
            return None
        scope = f"{self.caller.token}:{self.route.method} {self.route.path}"
        return Idempotency(key=f"{scope}:{parse.idempotency_key(key)}", digest=parse.digest(self._raw))

    async def ask(self, operation: Operation[Q, R], question: Q, *, slow: bool = False) -> R:
        """Ask the owner; `slow` where it must ask others in turn."""
        within = 2 * self.edge.settings.request_timeout if slow else None
        return await self.edge.bus.request(operation, question, within=within)

    @property
    def gone(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.request.transport is None or self.edge.stopping.is_set()


View = Callable[[Call], Awaitable[web.StreamResponse]]
