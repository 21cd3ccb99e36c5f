"""Traces, logs and metrics, as middleware: handlers never import OpenTelemetry.

Trace context crosses NATS in the header `traceparent` (W3C). Without an OTLP endpoint spans are not recorded, but
trace ids still travel, so that an error can be found in the logs.
"""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import structlog
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import Counter, Gauge, Histogram
from structlog.typing import EventDict, WrappedLogger

from gurney.settings import Settings

_PROPAGATOR = TraceContextTextMapPropagator()
_TRACER = trace.get_tracer("gurney")

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
        processors=[
            structlog.contextvars.merge_contextvars,
            _trace_ids,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return
    provider = TracerProvider(
        sampler=ParentBased(ALWAYS_ON) if settings.otlp_endpoint else ALWAYS_OFF,
        resource=Resource.create({"service.name": f"gurney-{service}"}),
    )
    if settings.otlp_endpoint:
        exporter = OTLPSpanExporter(endpoint=f"{settings.otlp_endpoint.rstrip('/')}/v1/traces")
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
    span = trace.get_current_span().get_span_context()
    return f"{span.trace_id:032x}" if span.is_valid else None


def traceparent() -> str | None:
    """Return the current W3C trace context."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent")


@contextmanager
def span(
    name: str, kind: SpanKind, parent: str | None = None, attributes: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Run the block within a span; `parent` is a traceparent from elsewhere."""
    within = _PROPAGATOR.extract({"traceparent": parent}) if parent else context.get_current()
    with _TRACER.start_as_current_span(name, within, kind, attributes):
        yield


SERVER, CLIENT, CONSUMER, PRODUCER = SpanKind.SERVER, SpanKind.CLIENT, SpanKind.CONSUMER, SpanKind.PRODUCER
INTERNAL = SpanKind.INTERNAL
