"""Which cells the matrix of bad input has: taken from the table of routes, so that a new row is a new line here.

A status that the table does not give to a route cannot occur there, and `CANNOT` says why; a test that sees it all the
same refutes the excuse. `HOW` says for every other cell what leads to it.
"""

from collections.abc import Mapping

from services.edge.call import Route
from services.edge.routes import ROUTES as TABLE

Cell = tuple[str, str, int]

ROUTES: list[tuple[str, str]] = [(route.method, route.path) for route in TABLE]
STATUSES: list[int] = [401, 403, 404, 409, 413, 415, 422, 503]

#: What leads to a conflict, route by route.
CONFLICTS: Mapping[tuple[str, str], str] = {
    ("POST", "/v1/maps"): "a name that another MAP has",
    ("PUT", "/v1/maps/{map}/name"): "a name that another MAP has",
    ("POST", "/v1/maps/{map}/approve"): "a MAP that is not ready",
    ("DELETE", "/v1/maps/{map}"): "a job of the MAP is live",
    ("POST", "/v1/payloads"): "a name that another payload has",
    ("PUT", "/v1/payloads/{payload}/name"): "a name that another payload has",
    ("DELETE", "/v1/payloads/{payload}"): "a live job has the payload as its input",
    ("POST", "/v1/jobs"): "the MAP is not ready",
    ("POST", "/v1/jobs/{job}/cancel"): "the job has succeeded",
    ("POST", "/v1/run/{map}"): "the MAP is not ready",
    ("POST", "/v1/jobs/{job}/finalize"): "the job is live",
    ("DELETE", "/v1/jobs/{job}"): "the job is live",
    ("PUT", "/v1/payloads/{payload}/files/{path}"): "a live job has the payload as its input",
    ("DELETE", "/v1/payloads/{payload}/files/{path}"): "a live job has the payload as its input",
    ("GET", "/v1/jobs/{job}/results"): "the job has not ended",
    ("GET", "/v1/jobs/{job}/results/{path}"): "the job has not ended",
}

#: What leads to a status on a route, where the table says that it can occur.
WAYS: Mapping[int, str] = {
    401: "no token, or one that is not known",
    403: "a token of a role that the table does not name",
    404: "an id or a name that is not there, in the path or (POST) in the body",
    413: "a body over the limit",
    415: "a body of Content-Type text/plain, or in a Content-Encoding",
    422: "a query parameter that the route does not know, or a field that does not fit",
    503: "nats-server is away",
}

#: Why a status cannot occur on a route, where the table does not have it.
REASONS: Mapping[int, str] = {
    401: "needs no token",
    403: "every role may, or no token is needed",
    404: "names nothing that could be missing",
    409: "nothing that it reads or makes can be in conflict",
    413: "takes no body",
    415: "takes no body",
    422: "takes neither body nor parameters, and ignores what it does not know",
    503: "asks no other service",
}

#: Cells that the table has, and that a server with the default settings does not show.
BY_SETTING: Mapping[Cell, str] = {
    ("GET", "/metrics", status): "open to everybody unless `metrics_public` is off: see tests/service/test_edge.py"
    for status in (401, 403)
}


def _how(route: Route, status: int) -> str | None:
    if status not in route.statuses or (route.method, route.path, status) in BY_SETTING:
        return None
    return CONFLICTS.get((route.method, route.path), "see the owner's checks") if status == 409 else WAYS[status]


#: How to get there, for every cell that must be seen.
HOW: dict[Cell, str] = {
    (route.method, route.path, status): how
    for route in TABLE
    for status in STATUSES
    if (how := _how(route, status)) is not None
}

#: Why the other cells stay empty.
CANNOT: dict[Cell, str] = {
    (method, path, status): BY_SETTING.get((method, path, status), REASONS[status])
    for method, path in ROUTES
    for status in STATUSES
    if (method, path, status) not in HOW
}
