"""Traces, logs and metrics, as middleware: what every service uses of `tracing` and `logs`, and the metrics.

Handlers say at most which job they are about; spans are made around them.
"""

import gc
import logging
import os
import sys
from functools import cache

import structlog
from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics
from pydantic import BaseModel

from gurney import recording
from gurney.logs import Bridge, processors
from gurney.settings import Settings, misspelt
from gurney.tracing import (
    CLIENT,
    CONSUMER,
    INTERNAL,
    SERVER,
    about,
    caused,
    current_trace_id,
    joined,
    span,
    traceparent,
)
from gurney.watcher import Watcher

__all__ = [
    "CLIENT",
    "CONSUMER",
    "INTERNAL",
    "SERVER",
    "about",
    "about_of",
    "caused",
    "current_trace_id",
    "joined",
    "log",
    "processors",
    "setup",
    "span",
    "traceparent",
]

disable_created_metrics()  # type: ignore[no-untyped-call]  # twice as many series for nothing

REQUESTS = Counter("gurney_requests_total", "Questions that a service answered.", ["service", "operation", "code"])
MESSAGES = Counter("gurney_messages_total", "Messages that a consumer finished.", ["consumer", "result"])
PUBLISHED = Counter(
    "gurney_events_published_total", "Events that JetStream has acknowledged, by kind of subject.", ["type"]
)
OUTBOX_AGE = Gauge("gurney_outbox_age_seconds", "Age of the oldest event that is not published yet.", ["service"])
HTTP_REQUESTS = Counter("gurney_http_requests_total", "HTTP requests.", ["method", "route", "status"])
HTTP_SECONDS = Histogram("gurney_http_seconds", "Seconds until an HTTP request was answered.", ["route"])
JOBS = Gauge("gurney_jobs", "Live jobs by state, as counted at the last round of the reconciler.", ["state"])
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
RUN_SECONDS = Histogram(
    "gurney_run_seconds",
    "Seconds that an application ran, by how it ended.",
    ["ending"],
    buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400, 86400),
)
RUN_MEMORY = Histogram(
    "gurney_run_peak_memory_bytes",
    "Memory that the processes of a run held at once, as far as it was seen.",
    buckets=[2.0**power for power in range(24, 39, 2)],
)
RUN_CPU = Counter("gurney_run_cpu_seconds_total", "Processor time of applications.")
RUN_GPU_MEMORY = Histogram(
    "gurney_run_gpu_peak_memory_bytes",
    "Memory that a run held at once on its GPUs, as far as it was seen.",
    buckets=[2.0**power for power in range(28, 41, 2)],
)
RUN_GPU_UTILIZATION = Histogram(
    "gurney_run_gpu_utilization_ratio",
    "Share of the time in which the GPUs of a run computed.",
    buckets=(0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1),
)
RUN_BYTES = Counter("gurney_run_bytes_total", "Bytes of files that applications found and left.", ["direction"])
CONTENTS = Counter(
    "gurney_contents_total",
    "Runs that were given what their MAP brings along: fetched for them, or kept from a run before.",
    ["result"],
)
DELIVERIES = Counter("gurney_deliveries_total", "Attempts to deliver to a job handler.", ["result"])
BYTES = Counter("gurney_bytes_total", "Bytes of files that clients moved.", ["direction"])
SPANS = Counter("gurney_spans_total", "Spans of traces: sent to the collector, or lost.", ["result"])

#: After how many objects and collections Python looks for garbage: with its own numbers, spans that wait to be sent are
#: looked through again and again (`docs/adr/0007-spans-are-of-opentelemetrys-sdk.md`).
COLLECT_AFTER = (20_000, 20, 50)


def setup(settings: Settings, service: str) -> None:
    """Set logging and tracing up for this process; once."""
    gc.set_threshold(*COLLECT_AFTER)
    verbose = settings.log_level == "debug"
    structlog.configure(
        processors=processors(settings.log_format, sys.stderr, verbose=verbose),
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    if not logging.root.handlers:
        logging.root.addHandler(Bridge(verbose=verbose))
    for name, meant in misspelt(os.environ).items():
        log("settings").warning("there is no such setting", name=name, meant=meant)
    if settings.otlp_endpoint:
        recording.record(settings.otlp_endpoint, service=service, ratio=settings.trace_ratio, watcher=_Watcher())


def log(name: str) -> structlog.typing.FilteringBoundLogger:
    """Return the logger of a module or service. Log ids and counts, never names or contents of a payload.

    Errors are handed over as they are: `error=error`, never their texts.
    """
    return structlog.get_logger(part=name)  # type: ignore[no-any-return]


def about_of(message: BaseModel) -> str | None:
    """Return the job or run that a message is about, if it names one."""
    field = _naming(type(message))
    value = getattr(message, field) if field else None
    return value if isinstance(value, str) else None


@cache
def _naming(message: type[BaseModel]) -> str | None:
    fields = message.model_fields
    return next((field for field in ("run_id", "job_id", "job", "id") if field in fields), None)


_log = log("traces")


class _Watcher(Watcher):
    """Counts spans, and logs once when the collector goes and once when it is back."""

    def sent(self, spans: int) -> None:
        SPANS.labels("sent").inc(spans)

    def lost(self, spans: int) -> None:
        SPANS.labels("lost").inc(spans)

    def away(self, why: str) -> None:
        _log.warning("the collector of traces does not answer", why=why)

    def back(self) -> None:
        _log.info("the collector of traces is back")
