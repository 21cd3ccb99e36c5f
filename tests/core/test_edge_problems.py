"""Every error becomes a problem document, and none shows the inside."""

import json
from typing import Any

import pytest
from aiohttp import web

from gurney.errors import BY_CODE, ErrorBody, FieldError, Invalid, NatsUnavailable, NoRoom, Unauthorized, from_body
from services.edge.problems import PROBLEM, problem_of

KEYS = {"type", "title", "status", "detail", "code", "errors", "trace_id"}
#: What is told beside it of a run that a client waited for.
RUN = {"job", "reason", "exit_code"}


def body_of(response: web.Response) -> dict[str, Any]:
    """Return the problem document of an answer."""
    assert isinstance(response.body, bytes)
    found: dict[str, Any] = json.loads(response.body)
    assert response.content_type == PROBLEM
    assert set(found) == KEYS | (RUN if found["code"] in {"run_failed", "timed_out"} else set())
    assert found["status"] == response.status
    return found


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_every_error_has_its_problem(code: str) -> None:
    """An error keeps its code, status, sentence and fields on the way from its owner to the client."""
    fault = FieldError(field="map", message="is not there")
    response = problem_of(from_body(ErrorBody(code=code, message="a plain sentence", errors=(fault,))))
    found = body_of(response)
    assert (found["code"], found["status"], found["detail"]) == (code, BY_CODE[code].status, "a plain sentence")
    assert found["errors"] == [{"field": "map", "message": "is not there"}]
    assert ("Retry-After" in response.headers) == (found["status"] == 503)


@pytest.mark.parametrize(("seconds", "told"), [(None, "1"), (0.2, "1"), (2.1, "3")])
def test_unavailable_says_when_to_come_again(seconds: float | None, told: str) -> None:
    """A 503 always has whole seconds in Retry-After, at least one."""
    assert problem_of(NoRoom("no room", retry_after_s=seconds)).headers["Retry-After"] == told
    assert problem_of(NatsUnavailable("away", retry_after_s=seconds)).status == 503


def test_unauthorized_names_the_scheme() -> None:
    """A 401 says how to authenticate."""
    assert problem_of(Unauthorized("no token")).headers["WWW-Authenticate"] == "Bearer"


def test_refusals_of_the_http_server_are_problems() -> None:
    """What the HTTP server itself refuses has the same shape, and keeps the header that helps."""
    response = problem_of(web.HTTPMethodNotAllowed("PUT", ["GET", "POST"]))
    assert body_of(response)["code"] == "method_not_allowed"
    assert response.headers["Allow"] == "GET,POST"
    assert body_of(problem_of(web.HTTPNotFound()))["code"] == "not_found"


def test_defect_shows_nothing_of_the_inside() -> None:
    """An error that nobody foresaw is a 500 without its text."""
    found = body_of(problem_of(ZeroDivisionError("secret of the house")))
    assert (found["status"], found["code"]) == (500, "internal")
    assert "secret" not in json.dumps(found)


def test_fields_of_a_refusal_are_in_the_sentence() -> None:
    """Who reads the sentence alone learns the field, too."""
    assert "limit" in body_of(problem_of(Invalid.field("limit", "must be a number")))["detail"]
