"""The OpenAPI 3.1 document, made of the table of routes and the models."""

import json
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gurney.model.access import Role
from gurney.model.base import Document
from gurney.openapi import Json, given, path_parameters
from services.edge.call import JSON, Route
from services.edge.problems import PROBLEM

Mode = Literal["validation", "serialization"]

REF = "#/components/schemas/"
FIRST_ERROR = 400

ABOUT = (
    "Runs containerised medical AI applications. A job in three steps: register a MAP (POST /v1/maps), create a "
    "payload and put files into it (POST /v1/payloads), submit (POST /v1/jobs). Events and NATS subjects: "
    "/asyncapi.json."
)
ACCESS = (
    "Token (the embedded server keeps an administrator's in the file `token` of its data folder); it stays in this tab"
)


PROBLEM_SCHEMA: Json = {
    "type": "object",
    "description": "An RFC 9457 problem document. `code` is stable; `errors` names fields.",
    "required": ["type", "title", "status", "detail", "code", "errors", "trace_id"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "message"],
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
        "trace_id": {"type": ["string", "null"]},
    },
}


def document(routes: Sequence[Route]) -> Json:
    """Return the document of these routes."""
    schemas = _Schemas(routes)
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Gurney",
            "description": ABOUT,
            "version": version("gurney"),
            "license": {"name": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas.used_by(paths),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": ACCESS}},
        },
    }


class _Schemas:
    """The schemas of all models that the routes name, without what never leaves the server."""

    def __init__(self, routes: Sequence[Route]) -> None:
        models: dict[tuple[type[BaseModel], Mode], None] = {}
        for route in routes:
            models |= {(model, "validation"): None for model in (route.body, route.query) if model}
            if route.reply:
                models[route.reply, "serialization"] = None
        self._refs, found = models_json_schema(list(models), ref_template=f"{REF}{{model}}")
        self._all: Json = {**found.get("$defs", {}), "Problem": PROBLEM_SCHEMA}
        for route in routes:
            if route.reply and issubclass(route.reply, Document):
                self._hide(self._name(route.reply, "serialization"), route.reply.PRIVATE)

    def of(self, model: type[BaseModel], mode: Mode) -> Json:
        return {"$ref": REF + self._name(model, mode)}

    def page(self, model: type[BaseModel]) -> Json:
        """Return the schema of a page, whose items leave out what lists leave out."""
        name = self._name(model, "serialization")
        item = f"{name}Item"
        self._all[item] = json.loads(json.dumps(self._all[name]))
        self._hide(item, model.LIST_OMITS if issubclass(model, Document) else frozenset())
        self._all[f"{name}Page"] = {
            "type": "object",
            "required": ["items", "next_cursor"],
            "properties": {
                "items": {"type": "array", "items": {"$ref": REF + item}},
                "next_cursor": {"type": ["string", "null"], "description": "null ends the list"},
            },
        }
        return {"$ref": f"{REF}{name}Page"}

    def properties(self, model: type[BaseModel]) -> Json:
        found: Json = self._all[self._name(model, "validation")].get("properties", {})
        return found

    def used_by(self, paths: Json) -> Json:
        """Return the schemas that the paths refer to, and those that these refer to in turn."""
        used: set[str] = set()
        waiting = set(_refs(paths))
        while waiting:
            name = waiting.pop()
            used.add(name)
            waiting |= set(_refs(self._all[name])) - used
        return {name: self._all[name] for name in sorted(used)}

    def _name(self, model: type[BaseModel], mode: Mode) -> str:
        return str(self._refs[model, mode]["$ref"]).removeprefix(REF)

    def _hide(self, name: str, fields: frozenset[str]) -> None:
        schema = self._all[name]
        schema["properties"] = {key: value for key, value in schema["properties"].items() if key not in fields}
        schema["required"] = [key for key in schema.get("required", []) if key not in fields]


def _refs(node: Any) -> Iterator[str]:
    match node:
        case dict():
            if isinstance(reference := node.get("$ref"), str):
                yield reference.removeprefix(REF)
            for value in node.values():
                yield from _refs(value)
        case list():
            for value in node:
                yield from _refs(value)


def _operation(route: Route, schemas: _Schemas) -> Json:
    noun = route.view.__module__.rpartition(".")[2]
    operation: Json = {
        "operationId": f"{noun}_{route.view.__name__}" + ("_head" if route.method == "HEAD" else ""),
        "tags": [noun],
        "summary": route.summary,
        "parameters": [*path_parameters(route.path), *_query_parameters(route, schemas), *_header_parameters(route)],
        "responses": {str(status): _response(route, status, schemas) for status in route.statuses},
        "security": [{"token": []}] if route.roles else [],
    }
    if route.roles:
        operation["description"] = f"For: {', '.join(role for role in Role if role in route.roles)}."
    if route.takes_body:
        content = {media: _body_schema(route, media, schemas) for media in route.accepts}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _body_schema(route: Route, media: str, schemas: _Schemas) -> Json:
    return {"schema": schemas.of(route.body, "validation")} if media == JSON and route.body else {}


def _response(route: Route, status: int, schemas: _Schemas) -> Json:
    response: Json = {"description": HTTPStatus(status).phrase}
    if status >= FIRST_ERROR:
        response["content"] = {PROBLEM: {"schema": {"$ref": f"{REF}Problem"}}}
    elif route.reply and status != HTTPStatus.NO_CONTENT:
        page = route.listed
        schema = schemas.page(route.reply) if page else schemas.of(route.reply, "serialization")
        response["content"] = {JSON: {"schema": schema}}
    elif status not in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
        response["content"] = {route.media: {}}
    return response


def _query_parameters(route: Route, schemas: _Schemas) -> list[Json]:
    if route.query is None:
        return []
    return [
        {"name": name, "in": "query", "required": False, "schema": given(schema)}
        for name, schema in schemas.properties(route.query).items()
    ]


def _header_parameters(route: Route) -> list[Json]:
    asked = []
    if route.idempotent:
        text = "Repeats with the same key and body get the first result"
        asked.append(_header("Idempotency-Key", text, {"type": "string", "minLength": 1, "maxLength": 255}))
    if route.waits:
        asked.append(_header("Prefer", "wait=n answers at the end, or after n seconds", {"type": "string"}))
    if route.may_be_async:
        text = "respond-async answers 202 at once; wait=n stops the run after n seconds"
        asked.append(_header("Prefer", text, {"type": "string"}))
    return asked


def _header(name: str, description: str, schema: Json) -> Json:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}
