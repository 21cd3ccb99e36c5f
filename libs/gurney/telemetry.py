"""Traces, logs and metrics, as middleware: handlers never import OpenTelemetry.

Trace context crosses NATS in the header `traceparent` (W3C). Without an OTLP endpoint spans are not recorded, but
trace ids still travel, so that an error can be found in the logs.
"""

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from typing import TextIO

import structlog
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import Counter, Gauge, Histogram
from structlog.typing import EventDict, Processor, WrappedLogger

from gurney.ids import new_traceparent
from gurney.settings import Settings

_PROPAGATOR = TraceContextTextMapPropagator()
_TRACER = trace.get_tracer("gurney")
_TRACEPARENT = re.compile("00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
#: The trace context where spans are not recorded.
_UNRECORDED: ContextVar[str | None] = ContextVar("traceparent", default=None)
_recording = False

REQUESTS = Counter("gurney_requests_total", "Questions that a service answered.", ["service", "operation", "code"])
MESSAGES = Counter("gurney_messages_total", "Messages that a consumer finished.", ["consumer", "result"])
PUBLISHED = Counter("gurney_events_published_total", "Events that JetStream has acknowledged.", ["type"])
OUTBOX_AGE = Gauge("gurney_outbox_age_seconds", "Age of the oldest event that is not published yet.", ["service"])
HTTP_REQUESTS = Counter("gurney_http_requests_total", "HTTP requests.", ["method", "route", "status"])
HTTP_SECONDS = Histogram("gurney_http_seconds", "Seconds until an HTTP request was answered.", ["route"])
JOBS_ENDED = Counter("gurney_jobs_ended_total", "Jobs that ended.", ["state"])
QUEUE_SECONDS = Histogram(
    "gurney_queue_seconds",
    "Seconds that an attempt waited for its placement.",
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 30, 60, 300, 1800, 3600, 14400),
)
PLACEMENT_SECONDS = Histogram(
    "gurney_placement_seconds", "Seconds of one evaluation of the scheduler.", buckets=(0.0005, 0.001, 0.005, 0.02, 0.1)
)
NODE_CAPACITY = Gauge("gurney_node_capacity", "What the nodes have: cores, bytes, GPUs.", ["resource"])
NODE_USED = Gauge("gurney_node_used", "What live placements hold: cores, bytes, GPUs.", ["resource"])
JOBS_WAITING = Gauge("gurney_jobs_waiting", "Jobs that wait for room.")
DELIVERIES = Counter("gurney_deliveries_total", "Attempts to deliver to a job handler.", ["result"])
BYTES = Counter("gurney_bytes_total", "Bytes of files that clients moved.", ["direction"])


def setup(settings: Settings, service: str) -> None:
    """Set logging and tracing up for this process; once."""
    level = logging.DEBUG if settings.log_level == "debug" else logging.INFO
    structlog.configure(
        processors=processors(settings.log_format, sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    global _recording  # noqa: PLW0603  # one process, one exporter
    if settings.otlp_endpoint and not _recording:
        _export(settings.otlp_endpoint, service)
        _recording = True


def processors(log_format: str, stream: TextIO) -> Sequence[Processor]:
    """Return what makes lines of events: for machines with all there is, for people without what only machines join."""
    steps = structlog.processors
    begin = [structlog.contextvars.merge_contextvars, steps.add_log_level]
    terminal = stream.isatty()
    if log_format == "json" or (log_format == "auto" and not terminal):
        at = steps.TimeStamper(fmt="iso", utc=True, key="at")
        return [*begin, _trace_ids, at, steps.format_exc_info, steps.JSONRenderer()]
    lines = structlog.dev.ConsoleRenderer(
        colors=terminal and not os.environ.get("NO_COLOR"),
        exception_formatter=structlog.dev.plain_traceback,  # others print local variables: names of patients
        sort_keys=False,
        timestamp_key="at",
    )
    return [*begin, steps.TimeStamper(fmt="%H:%M:%S", utc=False, key="at"), lines]


def _export(endpoint: str, service: str) -> None:
    """Record spans and send them by OTLP; the imports are heavy and only needed here."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": f"gurney-{service}"}))
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def _trace_ids(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    if trace_id := current_trace_id():
        event["trace"] = trace_id
    return event


def log(name: str) -> structlog.typing.FilteringBoundLogger:
    """Return the logger of a module or service. Log ids and counts, never names or contents of a payload."""
    return structlog.get_logger(part=name)  # type: ignore[no-any-return]


def current_trace_id() -> str | None:
    """Return the current trace id in hexadecimal, None outside any trace."""
    current = traceparent()
    return current.split("-")[1] if current else None


def traceparent() -> str | None:
    """Return the current W3C trace context."""
    if not _recording:
        return _UNRECORDED.get()
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent")


def span(
    name: str, kind: SpanKind, parent: str | None = None, attributes: Mapping[str, str] | None = None
) -> AbstractContextManager[object]:
    """Return a context that is a span; `parent` is a traceparent from elsewhere."""
    if not _recording:
        return _Unrecorded(parent)
    within = _PROPAGATOR.extract({"traceparent": parent}) if parent else context.get_current()
    return _TRACER.start_as_current_span(name, within, kind, attributes)


class _Unrecorded:
    """Stands for a span where none is recorded: only the trace's ids travel, at next to no cost."""

    __slots__ = ("_parent", "_token")

    def __init__(self, parent: str | None) -> None:
        self._parent = parent
        self._token: Token[str | None] | None = None

    def __enter__(self) -> None:
        self._token = _UNRECORDED.set(_known(self._parent) or _UNRECORDED.get() or new_traceparent())

    def __exit__(self, *exc: object) -> None:
        if self._token:
            _UNRECORDED.reset(self._token)


def _known(parent: str | None) -> str | None:
    """Return a traceparent of the version that we know (W3C Trace Context, 3.2)."""
    return parent if parent and _TRACEPARENT.fullmatch(parent) else None


SERVER, CLIENT, CONSUMER, PRODUCER = SpanKind.SERVER, SpanKind.CLIENT, SpanKind.CONSUMER, SpanKind.PRODUCER
INTERNAL = SpanKind.INTERNAL
