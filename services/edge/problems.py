"""Errors as RFC 9457 problem documents: every refusal has one, and none shows the inside."""

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import web

from gurney import telemetry
from gurney.errors import BY_CODE, GurneyError, Internal, RunFailed, Unauthorized, Unavailable

PROBLEM = "application/problem+json"

#: Codes of what aiohttp itself refuses.
HTTP_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    414: "uri_too_long",
    415: "unsupported_type",
    416: "range_not_satisfiable",
    417: "expectation_failed",
    431: "header_too_large",
    501: "not_implemented",
}
#: Headers of such a refusal that say something; the rest describe a body that is replaced.
KEPT_HEADERS = ("Accept-Encoding", "Allow", "Location", "Content-Range", "Retry-After")

_log = telemetry.log("edge")


def problem_of(error: Exception) -> web.Response:
    """Return the answer to a request that failed."""
    match error:
        case GurneyError():
            return _problem(error.status, error.code, error.title, _body(error), _headers(error))
        case web.HTTPException():
            code = HTTP_CODES.get(error.status, "http_error")
            kept = {name: error.headers[name] for name in KEPT_HEADERS if name in error.headers}
            return _problem(error.status, code, _title(error, code), {"detail": error.reason, "errors": []}, kept)
        case _:
            _log.error("request failed", exc_info=error)
            return problem_of(Internal("the server made a mistake; its log has more under this trace id"))


def _title(error: web.HTTPException, code: str) -> str:
    """Return what a problem of this code is always called; the error's reason is about this one."""
    return BY_CODE[code].title if code in BY_CODE else HTTPStatus(error.status).phrase


def _body(error: GurneyError) -> dict[str, Any]:
    body = error.body()
    told: dict[str, Any] = {"detail": body.message, "errors": [fault.model_dump() for fault in body.errors]}
    if isinstance(error, RunFailed):
        told |= {"job": error.job, "reason": error.reason, "exit_code": error.exit_code}
    return told


def _headers(error: GurneyError) -> dict[str, str]:
    headers: dict[str, str] = {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Unavailable) or error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or 1)))
    return headers


def _problem(status: int, code: str, title: str, more: Mapping[str, Any], headers: Mapping[str, str]) -> web.Response:
    body = {
        "type": f"urn:gurney:problem:{code}",
        "title": title,
        "status": status,
        "code": code,
        "trace_id": telemetry.current_trace_id(),
        **more,
    }
    return web.Response(body=json.dumps(body).encode(), status=status, content_type=PROBLEM, headers=headers)
