"""A well-formed request for every route of the table, so that a test changes the one thing that is wrong with it."""

import re
from dataclasses import dataclass, field
from typing import Any

from gurney import ids
from services.edge.call import Route
from services.edge.packing import ZIP
from services.edge.routes import ROUTES
from tests.e2e.api import Answer, Api

ID_KINDS: dict[str, ids.Kind] = {"map": "map", "payload": "pay", "job": "job", "handler": "hdl", "token": "tok"}

#: Bodies that are right in themselves. What they name is not there.
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/v1/maps"): {"urn": "urn:gurney:dir:noop"},
    ("PUT", "/v1/maps/{map}/name"): {"name": "a name"},
    ("POST", "/v1/payloads"): {},
    ("PUT", "/v1/payloads/{payload}/name"): {"name": "a name"},
    ("POST", "/v1/jobs"): {"map": "no such map", "payload": "no such payload"},
    ("PUT", "/v1/payloads/{payload}/files/{path}"): b"content",
    ("POST", "/v1/run/{map}"): b"PK\x05\x06" + bytes(18),  # an empty zip
    ("POST", "/v1/handlers"): {"url": "http://127.0.0.1:9/", "map": "no such map"},
    ("PATCH", "/v1/handlers/{handler}"): {"state": "disabled"},
    ("POST", "/v1/tokens"): {"subject": "somebody", "role": "clinician"},
}


@dataclass(frozen=True)
class Example:
    """A request of a route; ids in its path are well-formed, and nothing has them."""

    route: Route
    path: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.route.method} {self.route.path}"

    async def send(self, api: Api, case: str, *, query: str = "", **options: Any) -> Answer:
        """Send it."""
        given = self.options | options
        return await api.call(self.route.method, self.path + query, case=case, **given)


def example(route: Route) -> Example:
    """Return the request of a route."""
    body = BODIES.get((route.method, route.path))
    options: dict[str, Any] = {"data": body} if isinstance(body, bytes) else {} if body is None else {"json": body}
    if ZIP in route.accepts and isinstance(body, bytes):
        options["headers"] = {"Content-Type": ZIP}
    return Example(route, re.sub(r"\{(\w+)\}", _filled, route.path), options)


def examples(*, status: int) -> list[Example]:
    """Return the requests of the routes that may answer so."""
    return [example(route) for route in ROUTES if status in route.statuses]


def _filled(part: re.Match[str]) -> str:
    if part[1] in ID_KINDS:
        return ids.new_id(ID_KINDS[part[1]])
    return "a/file.txt" if part[1] == "path" else "no-such-node"
