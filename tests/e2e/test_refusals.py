"""Bad input to every route of the table: each refusal is a problem document, and each status comes where it belongs."""

from typing import Any

import pytest

from gurney import ids
from services.edge.call import ANYTHING
from services.edge.packing import ZIP
from tests.e2e import work
from tests.e2e.api import Api
from tests.e2e.conftest import ClientOf
from tests.e2e.matrix_cells import BY_SETTING
from tests.e2e.requests import Example, examples

MIB = 1024**2


def cells(status: int) -> pytest.MarkDecorator:
    """Ask the test for every route that answers with this status."""
    wanted = [
        each for each in examples(status=status) if (each.route.method, each.route.path, status) not in BY_SETTING
    ]
    return pytest.mark.parametrize("request_", wanted, ids=str)


@pytest.mark.req("MAS-01", "MAS-04")
@cells(401)
async def test_401(anybody: Api, request_: Example) -> None:
    """Nobody gets in without a valid token."""
    (await request_.send(anybody, "no token")).must(401)
    for header, case in ((f"Bearer gurney_{ids.new_secret()}", "wrong token"), ("Basic YTpi", "other scheme")):
        answer = (await request_.send(anybody, case, headers={"Authorization": header})).must(401)
        assert request_.route.method == "HEAD" or answer.json["code"] == "unauthorized"


@pytest.mark.req("MAS-04")
@cells(403)
async def test_403(client_of: ClientOf, request_: Example) -> None:
    """A role that the table does not name is refused, whatever else is wrong with the request."""
    for role in ("clinician", "developer"):
        if role not in request_.route.roles:
            (await request_.send(await client_of(role), f"as {role}")).must(403, "forbidden")


@cells(404)
async def test_404(api: Api, admin: Api, request_: Example) -> None:
    """What is not there is told as not there, by id and by name."""
    client = admin if "developer" not in request_.route.roles else api
    options: dict[str, Any] = {}
    if request_.route.path == "/v1/jobs":
        options = {"json": {"map": "no such map", "payload": await work.payload(api)}}
    if request_.route.path == "/v1/maps":
        content = {"content": {"payload": "no such payload", "path": "/opt/models"}}
        options = {"json": {"urn": "urn:gurney:dir:noop", "description": content}}
    answer = (await request_.send(client, "unknown id", **options)).must(404)
    assert request_.route.method == "HEAD" or answer.json["code"] == "not_found"
    if "{" in request_.route.path:
        start = "/".join(request_.path.split("/")[:3])
        path = request_.path.replace(request_.path.split("/")[3], "no%20such%20name")
        (await client.call(request_.route.method, path, case=f"unknown name {start}", **request_.options)).must(404)


@cells(413)
async def test_413(api: Api, admin: Api, request_: Example) -> None:
    """A body over the limit is refused, whether its head or its bytes say so."""
    client = admin if "developer" not in request_.route.roles else api
    if request_.route.body is None or request_.route.path == "/v1/payloads":
        kind = ZIP if ZIP in request_.route.accepts else "application/octet-stream"
        head = f"{request_.route.method} {request_.path} HTTP/1.1\nContent-Type: {kind}\n"
        answer = await client.raw(f"{head}Content-Length: {65 * MIB}\nConnection: close", case="large file")
        answer.must(413, "too_large")
        assert str(64 * MIB) in answer.json["detail"]
    if request_.route.body is not None:
        large: dict[str, Any] = {"json": {"name": "x" * 500_000}}
        answer = (await request_.send(client, "large JSON", **large)).must(413, "too_large")
        assert "458752" in answer.json["detail"]


@cells(415)
async def test_415(api: Api, admin: Api, request_: Example) -> None:
    """A body of another type or in a coding is refused, and the refusal names the right one."""
    client = admin if "developer" not in request_.route.roles else api
    options: dict[str, Any] = {"json": None, "data": b"{}", "headers": {"Content-Encoding": "gzip"}}
    answer = (await request_.send(client, "gzip", **options)).must(415, "unsupported_type")
    assert answer.headers["Accept-Encoding"] == "identity"
    if ANYTHING not in request_.route.accepts:
        options["headers"] = {"Content-Type": "text/plain"}
        answer = (await request_.send(client, "text/plain", **options)).must(415, "unsupported_type")
        assert request_.route.accepts[0] in answer.json["detail"]


@cells(422)
async def test_422(api: Api, admin: Api, request_: Example) -> None:
    """A query parameter that a route does not know is told by its name."""
    client = admin if "developer" not in request_.route.roles else api
    answer = (await request_.send(client, "unknown parameter", query="?nonsense=1")).must(422)
    assert request_.route.method == "HEAD" or "nonsense" in answer.fields


@cells(422)
async def test_422_of_a_body(api: Api, admin: Api, request_: Example) -> None:
    """A body that is no JSON, no object, or has a field that is not known, is told by field."""
    if request_.route.body is None:
        return
    client = admin if "developer" not in request_.route.roles else api
    for raw, case, field in (
        (b"{", "no JSON", "body"),
        (b"[]", "no object", "body"),
        (b'{"nonsense":1}', "unknown field", "nonsense"),
    ):
        options: dict[str, Any] = {"json": None, "data": raw, "headers": {"Content-Type": "application/json"}}
        answer = (await request_.send(client, case, **options)).must(422, "invalid")
        assert field in answer.fields, answer.json


async def test_unknown_routes(api: Api) -> None:
    """Paths and methods that the table does not have are refused in the same form."""
    (await api.get("/v1/nothing")).must(404)
    refused = (await api.call("PATCH", "/v1/maps")).must(405)
    assert set(refused.headers["Allow"].split(",")) >= {"GET", "POST"}
