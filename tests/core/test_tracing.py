"""Spans: their ids, their tree, what they know of service and job, and how they are written."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from gurney import ids, tracing
from gurney.errors import Internal, NotFound
from gurney.otlp import encode, request_of
from gurney.recording import Recording
from gurney.testing.collector import attributes_of, spans_of
from gurney.traceparent import is_traceparent, link_to

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, PARENT_ID = PARENT[3:35], PARENT[36:52]
JOB = ids.new_id("job")

Taken = Callable[[], list[tuple[str, Any]]]


class Memory:
    """Stands where the exporter does."""

    def __init__(self) -> None:
        self.put_in: list[tuple[str, bytes]] = []

    def put(self, service: str, span: bytes) -> None:
        self.put_in.append((service, span))


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """Spans are recorded; the call returns those that have ended."""
    memory = Memory()
    monkeypatch.setattr(Recording, "exporter", memory)
    monkeypatch.setattr(Recording, "ratio", 1.0)
    return lambda: spans_of(request_of(memory.put_in))


def test_a_span_is_written_as_opentelemetry_defines_it() -> None:
    """Ids, name, kind, times, attributes, links and status are read back by OpenTelemetry's own classes."""
    long, began = "x" * 300, 1_700_000_000_000_000_001
    written = encode(
        PARENT,
        "00f067aa0ba902b7",
        name="näme",
        kind=tracing.CONSUMER,
        times=(began, began + 776),
        attributes=[("text", long), ("number", 300), ("negative", -1), ("zero", 0)],
        links=["00-11111111111111111111111111111111-2222222222222222-01"],
        failed=True,
    )
    ((service, span),) = spans_of(request_of([("gurney-job", written)]))
    assert service == "gurney-job"
    assert (span.trace_id.hex(), span.span_id.hex()) == (TRACE, PARENT_ID)
    assert span.parent_span_id.hex() == "00f067aa0ba902b7"
    assert (span.name, span.kind) == ("näme", 5)
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (began, began + 776)
    assert attributes_of(span) == {"text": long, "number": 300, "negative": -1, "zero": 0}
    assert [(link.trace_id.hex()[:2], link.span_id.hex()[:2]) for link in span.links] == [("11", "22")]
    assert span.status.code == 2


def test_spans_of_several_services_come_as_several_resources() -> None:
    """One process that hosts many services sends each span under its own service's name."""
    span = encode(PARENT, "", name="a", kind=1, times=(1, 2), attributes=())
    found = spans_of(request_of([("gurney-job", span), ("gurney-edge", span), ("gurney-job", span)]))
    assert sorted(service for service, _ in found) == ["gurney-edge", "gurney-job", "gurney-job"]
    assert all(not each.parent_span_id for _, each in found)


def test_spans_make_a_tree(taken: Taken) -> None:
    """A span is below the one around it, or below its parent from elsewhere; it inherits service and job."""
    with tracing.span("a", tracing.SERVER, PARENT, service="job", about=f"{JOB}-2"), tracing.span("b", tracing.CLIENT):
        context = tracing.traceparent()
    (_, b), (_, a) = taken()
    assert a.parent_span_id.hex() == PARENT_ID
    assert b.parent_span_id == a.span_id
    assert context == f"00-{TRACE}-{b.span_id.hex()}-01"
    assert {service for service, _ in taken()} == {"gurney-job"}
    assert attributes_of(b) == {"gurney.job": JOB, "gurney.run": f"{JOB}-2"}
    assert tracing.traceparent() is None


def test_what_is_found_out_below_is_known_above(taken: Taken) -> None:
    """A span that learns which job it is about tells those above it, unless they are about another one."""
    other = ids.new_id("job")
    with (
        tracing.span("known", tracing.SERVER, about=other),
        tracing.span("unknown", tracing.SERVER, PARENT),
        tracing.span("learns", tracing.CLIENT) as learns,
    ):
        learns.about(JOB)
    told = {span.name: attributes_of(span).get("gurney.job") for _, span in taken()}
    assert told == {"known": other, "unknown": JOB, "learns": JOB}


@pytest.mark.parametrize("text", ["job_Müller", "job_", "pay_01m7yawxkxhhtdddhfek8518nk", f"{JOB}-x", "", None])
def test_only_ids_of_jobs_and_runs_are_told(taken: Taken, text: str | None) -> None:
    """What a client writes where an id belongs does not come into a trace."""
    with tracing.span("a", tracing.SERVER, about=text) as span:
        span.about(text)
    assert attributes_of(taken()[0][1]) == {}


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "nonsense",
        "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
    ],
)
def test_a_broken_parent_begins_a_new_trace(taken: Taken, parent: str) -> None:
    """What is no trace context is as if it were not there."""
    with tracing.span("a", tracing.SERVER, parent):
        pass
    ((_, span),) = taken()
    assert not span.parent_span_id
    assert span.trace_id.hex() not in parent.lower()


@pytest.mark.parametrize(
    ("flags", "recorded"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)]
)
def test_who_calls_decides_whether_a_trace_is_recorded(taken: Taken, flags: str, *, recorded: bool) -> None:
    """Of the flags only the sampled bit counts, and they travel on as they came."""
    with tracing.span("a", tracing.SERVER, PARENT[:53] + flags):
        context = tracing.traceparent()
    assert bool(taken()) == recorded
    assert context is not None
    assert context.endswith(f"-{flags}")


@pytest.mark.parametrize(("ratio", "recorded"), [(0.0, 0), (1.0, 50)])
def test_of_the_traces_begun_here_a_share_is_recorded(
    taken: Taken, monkeypatch: pytest.MonkeyPatch, ratio: float, recorded: int
) -> None:
    """What is not recorded has a trace id all the same, and so has all below it."""
    monkeypatch.setattr(Recording, "ratio", ratio)
    for _ in range(50):
        with tracing.span("a", tracing.SERVER):
            context = tracing.traceparent()
            assert context is not None
            assert context[-1] == ("1" if recorded else "0")
    assert len(taken()) == recorded


def test_without_a_collector_only_ids_travel() -> None:
    """A span passes the context of its parent on, and begins a trace where there is none."""
    with tracing.span("a", tracing.SERVER, PARENT):
        assert tracing.traceparent() == PARENT
        with tracing.span("b", tracing.CLIENT):
            assert tracing.traceparent() == PARENT
    with tracing.span("a", tracing.SERVER):
        begun = tracing.traceparent()
        assert is_traceparent(begun)
        assert begun != PARENT


def test_two_lives_of_one_span(taken: Taken) -> None:
    """A span with a key has the same id wherever it is made, and is sent once: by who ends it."""
    since = datetime(2026, 1, 2, tzinfo=UTC)
    with tracing.span("run", tracing.INTERNAL, PARENT, key="r-1", since=since) as first:
        below = tracing.traceparent()
        first.drop()
    with tracing.span("run", tracing.INTERNAL, PARENT, key="r-1", since=since):
        assert tracing.traceparent() == below == link_to(PARENT, "r-1")
    ((_, span),) = taken()
    assert span.start_time_unix_nano == int(since.timestamp()) * 10**9 < span.end_time_unix_nano


def test_what_happens_to_a_job_is_in_its_trace(taken: Taken) -> None:
    """Who acts on a job from another trace gets a span in the job's, with a link; from the job's own trace, none."""
    with tracing.span("cancel", tracing.SERVER) as request:
        with tracing.joined("change", PARENT, service="job", about=JOB):
            assert tracing.current_trace_id() == TRACE
        assert tracing.caused(PARENT) == PARENT
    with tracing.span("event", tracing.CONSUMER, PARENT), tracing.joined("no", PARENT, service="job", about=JOB):
        assert tracing.caused(PARENT) == tracing.traceparent() != PARENT
    change, _, event = (span for _, span in taken())
    assert (change.name, change.parent_span_id.hex(), event.name) == ("change", PARENT_ID, "event")
    assert [link.trace_id.hex() for link in change.links] == [request.traceparent[3:35]]
    assert tracing.caused(PARENT) == PARENT
    assert tracing.caused(None) is None


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (NotFound("no file Müller.dcm"), "not_found", 0),
        (Internal("x"), "internal", 2),
        (ZeroDivisionError("Müller"), "ZeroDivisionError", 2),
    ],
)
def test_errors_are_told_by_their_kind(taken: Taken, error: Exception, kind: str, status: int) -> None:
    """A span says which kind of error ended it, never its text; what the asker did wrong does not stand out."""
    with pytest.raises(type(error)), tracing.span("a", tracing.SERVER):
        raise error
    ((_, span),) = taken()
    assert attributes_of(span) == {"error.type": kind}
    assert span.status.code == status
    assert b"ller" not in span.SerializeToString()
