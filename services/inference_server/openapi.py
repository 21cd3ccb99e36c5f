"""What a listener says of itself: an OpenAPI 3.1 document, made of its routes."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version

from gurney.openapi import Json, given, path, path_parameters
from services.inference_server.call import Route
from services.inference_server.replies import MODEL_NOT_FOUND, NO_TOKEN, NOT_FOUND, TOLD, UNPROCESSABLE
from services.inference_server.settings import Listener
from services.inference_server.stock import MEDIA

ABOUT: dict[Listener, str] = {
    "public": "Post a zip as a task, poll it by its uid, fetch its output.",
    "private": "All of models and tasks. For the loopback device and private networks only.",
    "v2": "Version 2.0: tar archives. Models, and tasks by their number, need the header X-Token.",
}


def document(listener: Listener, routes: Sequence[Route]) -> Json:
    """Return the document of these routes."""
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(path(route.path), {})[route.method.lower()] = _operation(route)
    scheme = {"type": "apiKey", "in": "header", "name": "X-Token", "description": "X-Token; it stays in this tab"}
    guarded = any(route.needs_token for route in routes)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"InferenceServer, {listener}",
            "description": ABOUT[listener],
            "version": version("gurney"),
            "license": {"name": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": {}, "securitySchemes": {"token": scheme} if guarded else {}},
    }


def _operation(route: Route) -> Json:
    media = MEDIA[route.format] if route.sends_archive else "application/json"
    answers = {"200": {"description": "OK", "content": {media: {}}}}
    answers |= {str(status): {"description": text} for status, text in _refusals(route).items()}
    if route.needs_token:
        answers |= {str(NO_TOKEN): {"description": "X-Token is missing, or wrong"}}
    if route.query.model_fields or route.file != "none":
        answers |= {str(UNPROCESSABLE): {"description": "Something is missing, or wrong"}}
    noun = route.view.__module__.rpartition(".")[2]
    operation: Json = {
        "operationId": f"{noun}_{route.view.__name__}",
        "tags": ["models" if "models" in route.path else "tasks"],
        "summary": route.does,
        "parameters": [*path_parameters(route.path), *_query_parameters(route)],
        "responses": answers,
        "security": [{"token": []}] if route.needs_token else [],
    }
    if route.needs_token:
        operation["description"] = "Needs X-Token."
    if route.file != "none":
        schema = {"type": "object", "properties": {route.part: {"type": "string", "format": "binary"}}}
        content = {"multipart/form-data": {"schema": schema}}
        operation["requestBody"] = {"required": route.file == "needed", "content": content}
    return operation


def _refusals(route: Route) -> Mapping[int, str]:
    """Return the codes of its own that a route may answer with."""
    if route.sends_archive and route.view.__name__.endswith("output"):
        return TOLD if route.format == "zip" else {status: TOLD[status] for status in TOLD if status != NOT_FOUND}
    if route.method == "POST" and route.path == "/api/tasks/":
        return {MODEL_NOT_FOUND: "Model not found"}
    is_about_one = "{" in route.path or (route.method != "POST" and route.query.model_fields)
    return {NOT_FOUND: "Not found"} if is_about_one else {}


def _query_parameters(route: Route) -> list[Json]:
    schema = route.query.model_json_schema()
    needed = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in needed, "schema": given(each)}
        for name, each in schema.get("properties", {}).items()
    ]
