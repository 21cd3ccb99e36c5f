"""What clients send: good input becomes models, bad input names its field."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, MultiDict

from gurney.errors import GurneyError, Invalid
from gurney.model.access import CreateToken
from gurney.model.job import CreateJob, JobState
from gurney.model.payload import CreatePayload
from services.edge import parse
from services.edge.parse import DryRun, Labelled, Paged
from services.edge.views.archives import ArchiveQuery
from services.edge.views.jobs import JobsQuery
from services.edge.views.maps import MapsQuery
from services.edge.views.payloads import PayloadsQuery

JSON_VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.lists(st.integers(), max_size=3)
BODIES = st.dictionaries(
    st.text(max_size=8), JSON_VALUES | st.dictionaries(st.text(max_size=3), JSON_VALUES, max_size=3)
)


def fields(error: GurneyError) -> list[str]:
    """Return the fields that an error names."""
    return [fault.field for fault in error.errors]


def refused(kind: type[parse.Query] | None, *pairs: tuple[str, str]) -> Invalid:
    """Return how a query is refused."""
    with pytest.raises(Invalid) as caught:
        parse.query(kind, MultiDict(pairs))
    return caught.value


def test_no_query_is_all_defaults() -> None:
    """Without parameters a list has its default limit and no filter."""
    query = parse.query(JobsQuery, MultiDict())
    assert isinstance(query, JobsQuery)
    assert query.limit == 100
    assert {key for key, value in query.filters().items() if value} == {"limit"}


def test_all_filters_combine() -> None:
    """Filters of all kinds become the owner's conditions; a label's value may hold an equals sign."""
    pairs = [
        ("map", "lung"),
        ("payload", "scan 1"),
        ("state", "running"),
        ("label", "site=a"),
        ("label", "note=b=c"),
        ("created_after", "2026-01-31T12:00:00+02:00"),
        ("completed_before", "2026-02-01T00:00:00.123456Z"),
        ("limit", "7"),
        ("cursor", "abc"),
    ]
    query = parse.query(JobsQuery, MultiDict(pairs))
    assert query is not None
    filters = query.filters()
    assert filters["labels"] == (("site", "a"), ("note", "b=c"))
    assert filters["state"] is JobState.RUNNING
    assert filters["created_after"].isoformat() == "2026-01-31T10:00:00+00:00"
    assert filters["limit"] == 7
    assert "label" not in filters


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (Paged, "limit", "0"),
        (Paged, "limit", "1001"),
        (Paged, "limit", "ten"),
        (Paged, "limit", ""),
        (Paged, "cursor", "x" * 2000),
        (Labelled, "label", "site"),
        (Labelled, "label", "=a"),
        (Labelled, "label", ""),
        (Labelled, "created_after", "yesterday"),
        (Labelled, "created_after", "1700000000"),
        (Labelled, "created_before", "2026-01-31"),
        (Labelled, "created_before", "2026-01-31T12:00:00"),
        (Labelled, "created_before", "2026-02-30T12:00:00Z"),
        (JobsQuery, "completed_after", "2026-01-31T12:00:00 02:00"),
        (MapsQuery, "state", "done"),
        (PayloadsQuery, "state", "deleting"),
        (DryRun, "dry_run", "perhaps"),
        (MapsQuery, "colour", "red"),
        (None, "colour", "red"),
    ],
)
def test_bad_parameter_is_named(kind: type[parse.Query] | None, name: str, value: str) -> None:
    """A parameter that is malformed, out of bounds or unknown is refused by its name."""
    assert fields(refused(kind, (name, value))) == [name]


def test_wrong_state_lists_the_allowed_ones() -> None:
    """Who asks for a state that does not exist is told those that do."""
    assert all(state in str(refused(JobsQuery, ("state", "done"))) for state in JobState)


def test_parameter_given_twice_is_refused() -> None:
    """Only labels repeat: of two limits none is taken silently."""
    assert fields(refused(Paged, ("limit", "1"), ("limit", "2"))) == ["limit"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", "body"),
        (b"", "body"),
        (b"\xff", "body"),
        (b"[]", "body"),
        (b"{}", "map"),
        (b'{"map":"m","payload":"p","colour":1}', "colour"),
        (b'{"map":"m","payload":"p","retries":11}', "retries"),
        (b'{"map":"m","payload":"p","retries":"1"}', "retries"),
        (b'{"map":"m","payload":"p","retries":true}', "retries"),
        (b'{"map":"m","payload":"p","timeout_s":"5"}', "timeout_s"),
        (b'{"map":"m","payload":"p","resources":{"memory":"5"}}', "resources.memory"),
        (b'{"map":"m","payload":"p","timeout_s":-1}', "timeout_s"),
        (b'{"map":"m","payload":"p","priority":"first"}', "priority"),
        (b'{"map":"m","payload":"p","resources":{"memory":"much"}}', "resources.memory"),
        (b'{"map":"m","payload":"p","labels":{"a=b":"c"}}', "labels"),
        (json.dumps({"map": "m", "payload": "p", "labels": {"a": "c" * 256}}).encode(), "labels"),
        (json.dumps({"map": "m", "payload": "p", "labels": {str(n): "" for n in range(65)}}).encode(), "labels"),
    ],
)
def test_bad_body_names_its_field(body: bytes, field: str) -> None:
    """A body that is no JSON or does not fit is refused by field, without addresses of a library."""
    with pytest.raises(Invalid) as caught:
        parse.body(CreateJob, body)
    assert fields(caught.value)[0] == field
    assert "http" not in str(caught.value)


@pytest.mark.parametrize("keep", [b'"yes"', b'"true"', b"1", b"null"])
def test_a_word_is_no_boolean(keep: bytes) -> None:
    """In a body only true and false are booleans; a query has nothing but words."""
    with pytest.raises(Invalid) as caught:
        parse.body(CreatePayload, b'{"keep":%b}' % keep)
    assert fields(caught.value) == ["keep"]
    query = parse.query(ArchiveQuery, MultiDict({"keep": "yes"}))
    assert isinstance(query, ArchiveQuery)
    assert query.keep


@pytest.mark.parametrize(
    "time",
    ["4102444800", '"4102444800"', "4102444800.5", '"2100-01-01"', '"2100-01-01T00:00Z"', '"2100-02-30T00:00:00Z"'],
)
def test_a_time_in_a_body_is_rfc_3339(time: str) -> None:
    """Neither seconds since 1970 nor half a time are times; the refusal names the field."""
    with pytest.raises(Invalid) as caught:
        parse.body(CreateToken, f'{{"subject":"a","role":"clinician","expires_at":{time}}}'.encode())
    assert fields(caught.value) == ["expires_at"]


@pytest.mark.parametrize(
    "time", ["2100-01-01T01:00:00.5+01:00", "2100-01-01t00:00:00.5000001z", "2100-01-01 00:00:00.5Z"]
)
def test_every_writing_of_a_time_is_taken(time: str) -> None:
    """What RFC 3339 allows is read, and kept in UTC; an own message has it as it was."""
    body = parse.body(CreateToken, f'{{"subject":"a","role":"clinician","expires_at":"{time}"}}'.encode())
    assert body.expires_at == datetime(2100, 1, 1, microsecond=500_000, tzinfo=UTC)
    assert CreateToken.model_validate_json(body.model_dump_json()) == body


def test_many_faults_are_cut() -> None:
    """A body with thousands of faults gets an answer of bounded size."""
    with pytest.raises(Invalid) as caught:
        parse.body(CreateJob, json.dumps({f"x{n}" * 100: 1 for n in range(5000)}).encode())
    assert len(caught.value.errors) <= parse.MAX_FAULTS
    assert len(caught.value.body().model_dump_json()) < 16_384


@pytest.mark.parametrize(
    "body",
    [
        {"role": "king", "subject": "a"},
        {"role": "clinician", "subject": ""},
        {"role": "clinician", "subject": "a", "project": "a:b"},
    ],
)
def test_token_with_unusable_text_is_refused(body: dict[str, Any]) -> None:
    """A token needs a role that exists, a subject, and a project without a colon."""
    with pytest.raises(Invalid):
        parse.body(CreateToken, json.dumps(body).encode())


@given(BODIES)
def test_digest_does_not_depend_on_writing(body: dict[str, Any]) -> None:
    """Order and white space do not change the digest of a body."""
    turned = dict(reversed(body.items()))
    assert parse.digest(json.dumps(body).encode()) == parse.digest(json.dumps(turned, indent=2).encode())


def test_digest_tells_bodies_apart() -> None:
    """Another body has another digest."""
    assert parse.digest(b'{"a":1}') != parse.digest(b'{"a":2}')


@pytest.mark.parametrize("key", ["", "x" * 256, "naïve", "a\tb"])
def test_unusable_idempotency_key_is_refused(key: str) -> None:
    """A key has 1 to 255 printable ASCII characters."""
    with pytest.raises(Invalid) as caught:
        parse.idempotency_key(key)
    assert fields(caught.value) == ["Idempotency-Key"]


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, None),
        ("respond-async", None),
        ("wait=5", 5),
        ("Wait = 5", 5),
        ('respond-async, wait="7"', 7),
        ("wait=0", 0),
        ("wait=99999999999999999999", 60),
    ],
)
def test_prefer_wait(prefer: str | None, seconds: int | None) -> None:
    """The wait is read from among other preferences, and is at most a minute."""
    headers = CIMultiDict({"Prefer": prefer} if prefer else {})
    assert parse.prefer_wait(headers) == seconds


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [
        ("", False),
        ("wait=5", False),
        ("respond-async", True),
        ("wait=5, Respond-Async", True),
        ("respond-async; x=1", True),
        ("respond-asynchronously", False),
    ],
)
def test_prefer_async(prefer: str, expected: bool) -> None:  # noqa: FBT001
    """The wish not to wait is read from among other preferences."""
    assert parse.prefer_async(CIMultiDict({"Prefer": prefer})) is expected


@pytest.mark.parametrize("prefer", ["wait=", "wait=soon", "wait=-1", "wait=1.5"])
def test_wait_that_is_no_number_is_refused(prefer: str) -> None:
    """A wait that is no whole number would make the client ask without end: it is refused."""
    with pytest.raises(Invalid) as caught:
        parse.prefer_wait(CIMultiDict({"Prefer": prefer}))
    assert fields(caught.value) == ["Prefer"]


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"])
def test_a_time_outside_the_calendar_in_utc(time: str) -> None:
    """A time that UTC cannot hold is the client's mistake and names its field."""
    with pytest.raises(Invalid) as refused:
        parse.query(PayloadsQuery, MultiDict({"created_after": time}))
    assert fields(refused.value) == ["created_after"]
