"""The table of routes and the documents made of it hold together."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from gurney.docs_page import PAGE
from gurney.model.access import Role
from gurney.model.base import Document
from gurney.subjects import OPERATIONS, SUBJECTS
from services.edge import asyncapi, openapi
from services.edge.call import Route
from services.edge.routes import ROUTES
from services.inference_server import openapi as facade
from services.inference_server.call import Route as FacadeRoute
from services.inference_server.routes import PRIVATE, PUBLIC, VERSION_2
from services.inference_server.settings import Listener

API: dict[str, Any] = json.loads(json.dumps(openapi.document(ROUTES)))
EVENTS_API: dict[str, Any] = json.loads(json.dumps(asyncapi.document()))
FACADE_ROUTES: dict[Listener, Sequence[FacadeRoute]] = {"public": PUBLIC, "private": PRIVATE, "v2": VERSION_2}
FACADE: dict[Listener, dict[str, Any]] = {
    listener: json.loads(json.dumps(facade.document(listener, routes))) for listener, routes in FACADE_ROUTES.items()
}


def operations(api: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return path, method and operation of all that a document has."""
    return [(path, method, each) for path, methods in api["paths"].items() for method, each in methods.items()]


OPERATIONS_OF_API = operations(API)


def references(node: Any) -> Iterator[str]:
    """Iterate over all `$ref` of a document."""
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from references(value)
    if isinstance(node, dict) and isinstance(node.get("$ref"), str):
        yield node["$ref"]


def resolves(document: dict[str, Any], reference: str) -> bool:
    """Tell whether a reference within the document leads somewhere."""
    node: Any = document
    for part in reference.removeprefix("#/").split("/"):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def test_routes_are_unique() -> None:
    """No method and path stands in the table twice."""
    assert Counter((route.method, route.path) for route in ROUTES).most_common(1)[0][1] == 1


def test_every_versioned_route_needs_a_token() -> None:
    """Below /v1 nothing is open to everybody, and an administrator may do all."""
    for route in ROUTES:
        assert bool(route.roles) == route.path.startswith("/v1/"), route.path
        assert not route.roles or Role.ADMINISTRATOR in route.roles, route.path


@pytest.mark.parametrize("document", [API, EVENTS_API, *FACADE.values()], ids=["openapi", "asyncapi", *FACADE])
def test_references_resolve(document: dict[str, Any]) -> None:
    """Every reference of a document leads somewhere within it."""
    assert [each for each in references(document) if not resolves(document, each)] == []


def test_openapi_has_every_route() -> None:
    """Each row of the table is an operation, and no other is."""
    assert {(method.upper(), path) for path, method, _ in OPERATIONS_OF_API} == {(r.method, r.path) for r in ROUTES}
    assert API["openapi"].startswith("3.1.")
    assert {"title", "version"} <= set(API["info"])


@pytest.mark.parametrize("listener", FACADE)
def test_a_listener_describes_what_it_serves(listener: Listener) -> None:
    """Each route of the façade for InferenceServer is an operation, with the codes and the token that it has."""
    api, routes = FACADE[listener], FACADE_ROUTES[listener]
    found = {(method.upper(), path): each for path, method, each in operations(api)}
    wanted = {(each.method, re.sub(r":[^}]*", "", each.path)): each for each in routes}
    assert set(found) == set(wanted)
    for key, operation in found.items():
        assert bool(operation["security"]) == ("400" in operation["responses"]) == wanted[key].needs_token
        part = operation.get("requestBody", {}).get("content", {}).get("multipart/form-data")
        assert (part is not None) == (wanted[key].file != "none")
        assert part is None or set(part["schema"]["properties"]) == {wanted[key].part}
    assert bool(api["components"]["securitySchemes"]) == (listener == "v2")
    fetched = found["GET", "/api/tasks/outputs/" if listener == "v2" else "/api/tasks/{uid}"]["responses"]
    assert ({"551", "552", "553"} <= set(fetched)) == (listener != "private")


@pytest.mark.parametrize(
    ("path", "method", "operation"),
    [
        pytest.param(*each, id=f"{name}-{each[1]}-{each[0]}")
        for name, api in [("edge", API), *FACADE.items()]
        for each in operations(api)
    ],
)
def test_operation_obeys_openapi(path: str, method: str, operation: dict[str, Any]) -> None:
    """An operation declares each path parameter once, describes each response, and bodies have content."""
    named = [(each["in"], each["name"]) for each in operation["parameters"]]
    assert len(named) == len(set(named))
    assert {name for where, name in named if where == "path"} == set(re.findall(r"\{(\w+)\}", path))
    assert all(each["required"] for each in operation["parameters"] if each["in"] == "path")
    assert all("schema" in each for each in operation["parameters"])
    assert all(re.fullmatch(r"[1-5]\d\d", status) for status in operation["responses"])
    assert all(each["description"] for each in operation["responses"].values())
    assert "requestBody" not in operation or operation["requestBody"]["content"]
    assert method in {"get", "put", "post", "delete", "patch", "head"}
    assert bool({"400", "401"} & set(operation["responses"])) >= bool(operation["security"])


@pytest.mark.parametrize("api", [API, *FACADE.values()], ids=["edge", *FACADE])
def test_operation_ids_are_unique(api: dict[str, Any]) -> None:
    """A generator of clients gets a name of its own for each operation."""
    ids = Counter(operation["operationId"] for _, _, operation in operations(api))
    assert [name for name, count in ids.items() if count > 1] == []


@pytest.mark.parametrize("route", [r for r in ROUTES if r.reply], ids=lambda r: f"{r.method} {r.path}")
def test_private_fields_are_not_described(route: Route) -> None:
    """The schemas know nothing of what never leaves the server, nor pages of what lists leave out."""
    assert route.reply is not None
    content = API["paths"][route.path][route.method.lower()]["responses"][str(route.status)]["content"]
    schema = API["components"]["schemas"][content["application/json"]["schema"]["$ref"].rpartition("/")[2]]
    if route.listed:
        schema = API["components"]["schemas"][schema["properties"]["items"]["items"]["$ref"].rpartition("/")[2]]
    if issubclass(route.reply, Document):
        hidden = route.reply.PRIVATE | route.reply.LIST_OMITS if route.listed else route.reply.PRIVATE
        assert set(schema["properties"]) == set(route.reply.model_fields) - hidden


def test_asyncapi_has_every_subject() -> None:
    """Each subject and each operation of the table is a channel, with its parameters."""
    addresses = {channel["address"] for channel in EVENTS_API["channels"].values()} - {None}
    assert addresses == {each.template for each in SUBJECTS} | {each.subject for each in OPERATIONS}
    for channel in EVENTS_API["channels"].values():
        assert set(channel.get("parameters", {})) == set(re.findall(r"\{(\w+)\}", channel["address"] or ""))
        assert all("payload" in message for message in channel["messages"].values())


def test_page_for_people_needs_no_other_server() -> None:
    """The page loads nothing from anywhere but this server."""
    text = PAGE.read_text("utf-8")
    assert re.findall(r"(?:https?:)?//[a-z][\w.-]+\.\w+", text) == []
    assert set(re.findall(r"\b(?:src|href)=\"([^\"]+)\"", text)) <= {"openapi.json"}
