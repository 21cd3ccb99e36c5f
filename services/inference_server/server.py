"""The listeners: each an application of its own with its routes, its welcome and its pages."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from secrets import compare_digest

from aiohttp import web
from aiohttp.typedefs import Middleware
from pydantic import ValidationError

from gurney import docs_page, telemetry
from gurney.clock import monotonic
from gurney.errors import Conflict, GurneyError, NotFound, TooLarge, Unavailable
from services.inference_server import openapi
from services.inference_server.call import Call, Route, Server
from services.inference_server.near import foreign
from services.inference_server.patience import patiently
from services.inference_server.replies import (
    AWAY,
    NO_TOKEN,
    NOT_FOUND,
    UNPROCESSABLE,
    Refused,
    faults_of,
    missing,
    refused,
)
from services.inference_server.routes import POST_MODEL, PRIVATE, PUBLIC, VERSION_2
from services.inference_server.settings import Listener
from services.inference_server.uploads import posted

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

WELCOME: dict[Listener, str] = {
    "public": "Hello world - this is the public API",
    "private": "Hello world - this is the private API",
    "v2": "Hello world - this is the API of version 2.0",
}
TOKEN = "X-Token"  # noqa: S105  # the header's name
FORBIDDEN, FAULT = 403, 500
_STATUS = ((NotFound, NOT_FOUND), (Conflict, 409), (TooLarge, 413), (Unavailable, AWAY))
UNKNOWN = "unknown"

_log = telemetry.log("inference-server")


def application(server: Server, listener: Listener) -> web.Application:
    """Return what a listener serves."""
    # Where slashes are merged, aiohttp takes the last letter of a path for one, too.
    slash = [
        web.normalize_path_middleware(
            append_slash=append, remove_slash=not append, merge_slashes=False, redirect_class=_Moved
        )
        for append in (True, False)
    ]
    app = web.Application(middlewares=[_observed(listener), *slash])
    routes = routes_of(server, listener)
    for route in routes:
        app.router.add_route(route.method, route.path, _bound(server, route))
    welcome, document = WELCOME[listener], openapi.document(listener, routes)

    async def root(_: web.Request) -> web.Response:
        return web.json_response({"message": welcome})

    async def described(_: web.Request) -> web.Response:
        return web.json_response(document)

    async def docs(_: web.Request) -> web.Response:
        return await asyncio.to_thread(docs_page.page)

    app.router.add_get("/", root)
    app.router.add_get("/openapi.json", described)
    app.router.add_get("/docs", docs)
    return app


def routes_of(server: Server, listener: Listener) -> Sequence[Route]:
    match listener:
        case "private":
            return PRIVATE
        case "v2":
            return VERSION_2
        case "public" if server.settings.allow_public_post_model:
            return PUBLIC
    return [route for route in PUBLIC if route is not POST_MODEL]


class _Moved(web.HTTPTemporaryRedirect):
    """Where a path is written with a slash too many or too few."""


def _bound(server: Server, route: Route) -> Handler:
    """Return the handler of a route: what does not fit it is refused before its view."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if route.needs_token:
            _require_token(server, request)
        faults = []
        query = None
        try:
            query = route.query.model_validate(dict(request.query))
        except ValidationError as error:
            faults = faults_of(error)
        if route.file == "none":
            return await _viewed(Call(server, route, request, query, None), faults)
        async with posted(request, route.part, server.settings.data / "spool", server.most) as archive:
            if archive is None and route.file == "needed":
                faults.append(missing("body", route.part))
            return await _viewed(Call(server, route, request, query, archive), faults)

    return handle


async def _viewed(call: Call, faults: Sequence[object]) -> web.StreamResponse:
    if faults:
        raise Refused(UNPROCESSABLE, faults)
    if call.route.creates:
        return await call.route.view(call)
    return await patiently(lambda: call.route.view(call))


def _require_token(server: Server, request: web.Request) -> None:
    wanted = server.settings.v2_token
    given = request.headers.get(TOKEN, "")
    if wanted is None or not compare_digest(given.encode(errors="surrogateescape"), wanted.get_secret_value().encode()):
        raise Refused(NO_TOKEN, "X-Token header invalid")


def _observed(listener: Listener) -> Middleware:
    """Return what answers whatever happens, and logs it: never a path, for who knows a uid may fetch its output."""

    @web.middleware
    async def observed(request: web.Request, handler: Handler) -> web.StreamResponse:
        began = monotonic()
        resource = request.match_info.route.resource
        template = resource.canonical if resource else UNKNOWN
        with telemetry.span(
            f"{request.method} {template}",
            telemetry.SERVER,
            request.headers.get("traceparent"),
            service="inference-server",
            attributes={"http.request.method": request.method, "http.route": template},
        ) as span:
            response = await _answered(request, handler, listener)
            span.note("http.response.status_code", response.status)
        seconds = monotonic() - began
        telemetry.HTTP_REQUESTS.labels(request.method, f"{listener}:{template}", str(response.status)).inc()
        telemetry.HTTP_SECONDS.labels(f"{listener}:{template}").observe(seconds)
        tell = _log.debug if request.method == "GET" else _log.info
        tell("request", listener=listener, method=request.method, route=template, status=response.status)
        return response

    return observed


async def _answered(request: web.Request, handler: Handler, listener: Listener) -> web.StreamResponse:
    if listener == "private" and (why := foreign(request)):
        return refused(FORBIDDEN, why)
    try:
        return await handler(request)
    except _Moved:
        raise
    except Refused as error:
        return refused(error.status, error.detail)
    except web.HTTPException as error:
        answer = refused(error.status, error.reason)
        answer.headers.update({name: error.headers[name] for name in ("Allow",) if name in error.headers})
        return answer
    except GurneyError as error:
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), FAULT)
        if status == FAULT:
            _log.warning("request failed", error=error)
        return refused(status, str(error))
    except Exception:
        _log.exception("request failed")
        return refused(FAULT, "Internal server error")
