"""What happens around every view: trace, metrics, one log line, errors as problems.

The line of what changed something, or gave bytes away, is told at the default level, too: who did what, and when.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import StreamReader, hdrs, web

from gurney import telemetry
from gurney.clock import monotonic
from gurney.ids import is_id
from gurney.model.access import Caller
from services.edge.auth import allow
from services.edge.call import Call, Edge, Route
from services.edge.parse import refuse_encoded
from services.edge.problems import problem_of

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

UNKNOWN = "unknown"
#: From here on an answer is a refusal, which the default level of the log shows, too.
BAD = 400
FAULT = 500
#: Who asks, once that is known, and whether the default level of the log is to tell it.
ASKED: web.RequestKey[tuple[Caller, bool]] = web.RequestKey("asked", tuple)
STARTED: web.RequestKey[web.StreamResponse] = web.RequestKey("started", web.StreamResponse)

_log = telemetry.log("edge")


def bind(edge: Edge, route: Route) -> Handler:
    """Return the handler of a route: who asks, may he, does what he sends fit the route; then the view."""

    async def handle(request: web.Request) -> web.StreamResponse:
        caller = None
        if route.roles:
            caller = await edge.authenticator.caller(request.headers.get(hdrs.AUTHORIZATION))
            request[ASKED] = caller, route.method != hdrs.METH_GET or route.reply is None
            allow(caller, route.roles)
        call = Call(edge, request, route, caller)
        if route.takes_body:
            refuse_encoded(request)
        return await route.view(call)

    return handle


@web.middleware
async def observed(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer whatever happens. The log says the template of the path, never the path: names may tell of patients."""
    resource = request.match_info.route.resource
    template = resource.canonical if resource else UNKNOWN
    method = request.method if request.method in hdrs.METH_ALL else UNKNOWN
    began = monotonic()
    with telemetry.span(
        f"{method} {template}",
        telemetry.SERVER,
        request.headers.get("traceparent"),
        service="edge",
        about=request.match_info.get("job"),
        attributes={"http.request.method": method, "http.route": template},
    ) as span:
        response = await _answer(request, handler)
        span.note("http.response.status_code", response.status)
        if response.status >= FAULT:
            span.fail(str(response.status))
        _note(method, template, response.status, monotonic() - began, _who(request, response))
        if not response.prepared:
            _tell_trace(response)
            if response.status >= BAD and not _is_read(request.content):
                response.force_close()  # else the client may take what it has still to send for refused, or for heard
        return response


def refused(error: Exception) -> web.Response:
    """Answer what is not even a request."""
    with telemetry.span(UNKNOWN, telemetry.SERVER, service="edge"):
        response = problem_of(error)
        _note(UNKNOWN, UNKNOWN, response.status, 0.0, {})
        return response


def _note(method: str, template: str, status: int, seconds: float, who: Mapping[str, Any]) -> None:
    telemetry.HTTP_REQUESTS.labels(method, template, str(status)).inc()
    telemetry.HTTP_SECONDS.labels(template).observe(seconds)
    tell = _log.info if who or status >= BAD else _log.debug
    tell("request", method=method, route=template, status=status, ms=round(seconds * 1e3, 2), **who)


def _who(request: web.Request, response: web.StreamResponse) -> dict[str, Any]:
    """Return who it was, and the ids of what it was about; nothing where the default level is not to tell it."""
    caller, is_told = request.get(ASKED, (None, False))
    if caller is None or not (is_told or response.status >= BAD):
        return {}
    named = (*request.match_info.values(), response.headers.get(hdrs.LOCATION, "").rpartition("/")[2])
    about = [each for each in named if is_id(each)]
    return {"by": caller.subject, "token": caller.token, "project": caller.project, "about": about}


def _is_read(body: StreamReader) -> bool:
    """Tell whether all of a body is here, and is one."""
    return body.is_eof() and body.exception() is None


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Exception as error:
        started: web.StreamResponse | None = request.get(STARTED)
        if started is None:
            return problem_of(error)
        _log.warning("answer broke off", route=request.match_info.route.resource.canonical, error=error)  # type: ignore[union-attr]
        if request.transport is not None:  # the status is out: only a broken connection tells the client
            request.transport.abort()
        return started


async def note_start(request: web.Request, response: web.StreamResponse) -> None:
    """Note that the head of an answer goes out; a stream's is the last moment to name its trace."""
    request[STARTED] = response
    if "Traceparent" not in response.headers:
        _tell_trace(response)


def _tell_trace(response: web.StreamResponse) -> None:
    if parent := telemetry.traceparent():
        response.headers["Traceparent"] = parent
