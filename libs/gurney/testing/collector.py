"""A collector of traces for tests and benchmarks of one process: takes spans by OTLP over HTTP and keeps them."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ARRIVES_WITHIN_S = 10.0


class Collector:
    """One collector on a free loopback port, as a context. `status` is what it answers."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        #: The requests, as they came.
        self.bodies: list[bytes] = []
        self._arrived = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:  # the base class names it
                collector._take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        """A value for `GURNEY_OTLP_ENDPOINT`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _take(self, body: bytes) -> None:
        with self._arrived:
            self.bodies.append(body)
            self._arrived.notify_all()

    @property
    def spans(self) -> list[tuple[str, Any]]:
        """Every span that came, with the name of its service."""
        return [found for body in list(self.bodies) for found in spans_of(body)]

    def until(self, holds: Callable[[list[tuple[str, Any]]], bool]) -> list[tuple[str, Any]]:
        """Return the spans once something holds of them, or as they are when there was time enough. Blocks."""
        with self._arrived:
            self._arrived.wait_for(lambda: holds(self.spans), ARRIVES_WITHIN_S)
        return self.spans


def spans_of(body: bytes) -> list[tuple[str, Any]]:
    """Return the spans of a request, read by OpenTelemetry's own definition."""
    found = []
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        told = {each.key: each.value.string_value for each in resource.resource.attributes}
        found += [(told["service.name"], span) for scope in resource.scope_spans for span in scope.spans]
    return found


def attributes_of(span: Any) -> dict[str, str | int]:
    return {
        each.key: each.value.string_value if each.value.HasField("string_value") else each.value.int_value
        for each in span.attributes
    }
