"""Spans of OpenTelemetry's SDK: a provider for each service, all with one queue that a thread sends to one collector.

Nobody ever waits for it: what does not fit into the bounded queue is lost and counted, and a collector that is away is
told once. Imported only where spans are recorded.
"""

import logging
import os
import socket
import threading
from collections.abc import Sequence
from functools import cache
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Tracer

from gurney.traceparent import NEXT_ID
from gurney.watcher import Watcher

#: Spans that wait to be sent; more are lost.
MOST = 20_000
#: Spans of one request.
BATCH = 4096
INTERVAL_S = 1.0
#: For a batch, until it is lost; tried again meanwhile.
TIMEOUT_S = 30.0
#: What the end of the process waits for the last spans.
LAST_S = 2.0


class Spans:
    """Makes and sends the spans of a process. Raises ValueError where the endpoint is no URL, or the ratio none."""

    def __init__(self, endpoint: str, service: str, ratio: float, watcher: Watcher) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{endpoint} is no URL of a collector, such as http://127.0.0.1:4318")
        self._service = service
        self._sampler = ParentBased(TraceIdRatioBased(ratio))
        self._ids = Ids()
        instance = f"{socket.gethostname()}-{os.getpid()}"
        self._resource = Resource.create({"service.namespace": "gurney", "service.instance.id": instance})
        self._sender = Sender(Exporter(f"{endpoint.rstrip('/')}/v1/traces", watcher), watcher)
        self.tracer_of = cache(self._tracer_of)

    def _tracer_of(self, service: str | None) -> Tracer:
        provider = TracerProvider(
            self._sampler,
            OfService({**self._resource.attributes, "service.name": f"gurney-{service or self._service}"}),
            shutdown_on_exit=False,
            id_generator=self._ids,
        )
        provider.add_span_processor(self._sender)
        return provider.get_tracer("gurney")

    def close(self) -> None:
        """Send what waits, for a moment, and end."""
        self._sender.shutdown()


class Ids(RandomIdGenerator):
    """Ids by chance, but for the span whose id is given."""

    def generate_span_id(self) -> int:
        given = NEXT_ID.get()
        if given:
            NEXT_ID.set(0)
        return given or super().generate_span_id()


class OfService(Resource):
    """The one resource of a service. The encoder takes its hash for every span, by default that of its JSON."""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


class Exporter(OTLPSpanExporter):
    """Sends batches, and has the watcher told what otherwise the SDK would log again and again."""

    def __init__(self, url: str, watcher: Watcher) -> None:
        super().__init__(url, timeout=TIMEOUT_S)
        self.finished = 0
        self._watcher = watcher
        self._is_away = False
        self._exporting: int | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        logger = logging.getLogger(trace_exporter.__name__)
        self._exporting = threading.get_ident()
        logger.addFilter(self._hear)
        try:
            result = super().export(spans)
        finally:
            logger.removeFilter(self._hear)
        self.finished += len(spans)
        if result is not SpanExportResult.SUCCESS:
            self._watcher.lost(len(spans))
            return result
        self._watcher.sent(len(spans))
        if self._is_away:
            self._is_away = False
            self._watcher.back()
        return result

    def _hear(self, record: logging.LogRecord) -> bool:
        if record.thread != self._exporting:
            return True  # of another exporter in this program
        if not self._is_away:
            self._is_away = True
            self._watcher.away(record.getMessage())
        return False


class Sender(BatchSpanProcessor):
    """Sends what has ended each second, or sooner where it is much."""

    def __init__(self, exporter: Exporter, watcher: Watcher) -> None:
        super().__init__(exporter, MOST, INTERVAL_S * 1000, BATCH)
        self._exporter = exporter
        self._watcher = watcher
        self._taken = 0

    def on_end(self, span: ReadableSpan) -> None:
        if self._taken - self._exporter.finished >= MOST:
            self._watcher.lost(1)
            return
        self._taken += 1
        super().on_end(span)

    def shutdown(self) -> None:
        self._batch_processor.shutdown(int(LAST_S * 1000))  # its own caller gives it half a minute
