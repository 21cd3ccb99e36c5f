"""Spans: their ids, their tree, what they know of service and job, and how they are written."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gurney import ids, spans, tracing
from gurney.errors import Internal, NotFound
from gurney.recording import Recording
from gurney.testing.collector import attributes_of, spans_of
from gurney.traceparent import is_sampled, is_traceparent, link_to
from gurney.watcher import Watcher

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, PARENT_ID = PARENT[3:35], PARENT[36:52]
JOB = ids.new_id("job")

Taken = Callable[[], list[tuple[str, Any]]]


@pytest.fixture
def ratio() -> float:
    """The share of traces that is recorded."""
    return 1.0


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch, ratio: float) -> Taken:
    """Spans are recorded; the call returns those that have ended, in that order."""
    memory = InMemorySpanExporter()
    monkeypatch.setattr(spans, "Sender", lambda *_: SimpleSpanProcessor(memory))
    made = spans.Spans("http://127.0.0.1:4318", "test", ratio, Watcher())
    monkeypatch.setattr(Recording, "tracer_of", made.tracer_of)
    return lambda: [
        found for span in memory.get_finished_spans() for found in spans_of(encode_spans([span]).SerializeToString())
    ]


def test_a_span_is_as_opentelemetry_defines_it(taken: Taken) -> None:
    """Ids, name, kind, times, attributes, links and status arrive, and the resource says of which service it is."""
    link, began = "00-11111111111111111111111111111111-2222222222222222-01", datetime(2026, 1, 2, tzinfo=UTC)
    attributes: dict[str, str | int] = {"text": "x" * 300, "number": 300, "negative": -1, "zero": 0}
    with tracing.span(
        "näme", tracing.CONSUMER, PARENT, service="job", attributes=attributes, links=[link], since=began
    ) as made:
        made.note("late", "y")
        made.fail("broken")
    ((service, span),) = taken()
    assert service == "gurney-job"
    assert made.traceparent == f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT_ID)
    assert (span.name, span.kind) == ("näme", 5)
    assert span.start_time_unix_nano == int(began.timestamp()) * 10**9 < span.end_time_unix_nano
    assert attributes_of(span) == {**attributes, "late": "y", "error.type": "broken"}
    assert [(link.trace_id.hex()[:2], link.span_id.hex()[:2]) for link in span.links] == [("11", "22")]
    assert span.status.code == 2


def test_a_span_may_have_ended_before(taken: Taken) -> None:
    """What was over when somebody came to tell of it has the end that it had."""
    ended = datetime(2026, 1, 2, tzinfo=UTC)
    with tracing.span("a", tracing.INTERNAL, PARENT, since=ended) as span:
        span.until(ended)
    ((_, told),) = taken()
    assert told.start_time_unix_nano == told.end_time_unix_nano == int(ended.timestamp()) * 10**9


def test_a_quiet_span_is_not_told(taken: Taken) -> None:
    """What is below a quiet span stands below the one above it, knows its service, and tells it what it is about."""
    with (
        tracing.span("a", tracing.SERVER, PARENT),
        tracing.span("b", tracing.SERVER, service="job", quiet=True) as quiet,
        tracing.span("c", tracing.CLIENT) as c,
    ):
        c.about(JOB)
    (below, c_told), (_, a) = taken()
    assert (below, c_told.name, a.name) == ("gurney-job", "c", "a")
    assert c_told.parent_span_id == a.span_id
    assert quiet.job == attributes_of(a)["gurney.job"] == JOB
    with tracing.span("d", tracing.SERVER, quiet=True), tracing.span("e", tracing.CLIENT):
        assert is_traceparent(tracing.traceparent())
    assert len(taken()) == 2


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
    ("flags", "recorded", "told"),
    [("00", False, "00"), ("01", True, "01"), ("02", False, "02"), ("03", True, "03"), ("ff", True, "03")],
)
def test_who_calls_decides_whether_a_trace_is_recorded(taken: Taken, flags: str, told: str, *, recorded: bool) -> None:
    """Of the flags only the sampled bit counts, and those that W3C has defined travel on as they came."""
    with tracing.span("a", tracing.SERVER, PARENT[:53] + flags):
        context = tracing.traceparent()
    assert bool(taken()) == recorded
    assert context is not None
    assert context.endswith(f"-{told}")
    assert (context[:52] == PARENT[:52]) == (not recorded)


@pytest.mark.parametrize(("ratio", "recorded"), [(0.0, 0), (1.0, 50)])
def test_of_the_traces_begun_here_a_share_is_recorded(taken: Taken, recorded: int) -> None:
    """What is not recorded has a trace id all the same, and so has all below it."""
    for _ in range(50):
        with tracing.span("a", tracing.SERVER):
            context = tracing.traceparent()
            assert is_traceparent(context)
            assert context is not None
            assert is_sampled(context) == bool(recorded)
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
