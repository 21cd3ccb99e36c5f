"""A real Jaeger for tests: all in one, in memory, on free loopback ports, gone with its owner; and what it knows.

Methods block: call them off the loop.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from gurney.testing.child import Child, answers, free_port
from gurney.testing.tools import provided

READY_WITHIN_S = 30.0
#: What spans need at most from their end to the answers of the query API: batches go out every second.
KNOWN_WITHIN_S = 20.0
#: Listeners that no test asks: each gets a port that the system chooses.
_OTHERS = (
    "admin.http.host-port",
    "collector.grpc-server.host-port",
    "collector.http-server.host-port",
    "collector.otlp.grpc.host-port",
    "http-server.host-port",
    "processor.jaeger-binary.server-host-port",
    "processor.jaeger-compact.server-host-port",
    "processor.zipkin-compact.server-host-port",
    "query.grpc-server.host-port",
)


@dataclass(frozen=True)
class Seen:
    """A span, as Jaeger tells of it."""

    id: str
    #: None: a root.
    parent: str | None
    service: str
    name: str
    tags: dict[str, Any]
    #: Spans that it follows from, without being below them.
    links: tuple[str, ...]
    #: Microseconds since 1970, and how many.
    start: int
    duration: int


@dataclass(frozen=True)
class Trace:
    """The spans of one trace."""

    id: str
    spans: tuple[Seen, ...]

    @property
    def services(self) -> set[str]:
        return {span.service for span in self.spans}

    @property
    def roots(self) -> list[Seen]:
        return [span for span in self.spans if span.parent is None]

    @property
    def orphans(self) -> list[Seen]:
        """Spans whose parent is not there."""
        known = {span.id for span in self.spans}
        return [span for span in self.spans if span.parent is not None and span.parent not in known]

    def named(self, name: str) -> list[Seen]:
        """Return the spans of this name, first begun first."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.start)

    def above(self, span: Seen) -> list[Seen]:
        """Return the spans above one, the nearest first."""
        by_id = {each.id: each for each in self.spans}
        found: list[Seen] = []
        at = by_id.get(span.parent or "")
        while at is not None and at not in found:
            found.append(at)
            at = by_id.get(at.parent or "")
        return found


class Jaeger(Child):
    """One Jaeger. What it was told is gone when it stops."""

    def __init__(self, folder: Path) -> None:
        """Prepare a server whose log lies in `folder`."""
        self.otlp_port = free_port()
        self.query_port = free_port()
        command: list[str | Path] = [provided("jaeger"), f"--collector.otlp.http.host-port=127.0.0.1:{self.otlp_port}"]
        command += [f"--query.http-server.host-port=127.0.0.1:{self.query_port}", "--memory.max-traces=10000"]
        command += [f"--{other}=127.0.0.1:0" for other in _OTHERS]
        # It would send spans of its own to where nobody listens, and wait for that when it ends.
        super().__init__(command, folder / "jaeger.log", {"OTEL_TRACES_SAMPLER": "always_off"})

    @property
    def endpoint(self) -> str:
        """Where spans go: a value for `GURNEY_OTLP_ENDPOINT`."""
        return f"http://127.0.0.1:{self.otlp_port}"

    def start(self) -> Self:
        """Start it and return when it takes spans and answers questions."""
        return super().start().until(lambda: answers(self._url("/api/services")), READY_WITHIN_S)

    def services(self) -> set[str]:
        return set(self._get("/api/services") or ())

    def trace(self, trace_id: str, complete: Callable[[Trace], bool], within_s: float = KNOWN_WITHIN_S) -> Trace:
        """Return a trace once it is complete, or as it is when there was time enough."""
        until = time.monotonic() + within_s
        while True:
            found = self._trace(trace_id)
            if complete(found) or time.monotonic() > until:
                return found
            time.sleep(0.1)

    def _trace(self, trace_id: str) -> Trace:
        try:
            found = self._get(f"/api/traces/{trace_id}")
        except URLError:  # there is none yet
            return Trace(trace_id, ())
        return _trace_of(found[0]) if found else Trace(trace_id, ())

    def traces_of(self, service: str, tags: dict[str, str]) -> list[Trace]:
        """Return the traces in which a span of a service has these tags."""
        asked = urlencode({"service": service, "tags": json.dumps(tags), "limit": 1000, "lookback": "1h"})
        return [_trace_of(each) for each in self._get(f"/api/traces?{asked}")]

    def _get(self, path: str) -> Any:
        with urlopen(self._url(path), timeout=10) as answer:  # noqa: S310 - loopback
            return json.load(answer)["data"]

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.query_port}{path}"


def _trace_of(told: dict[str, Any]) -> Trace:
    services = {key: process["serviceName"] for key, process in told["processes"].items()}
    return Trace(told["traceID"], tuple(_seen(span, services[span["processID"]]) for span in told["spans"]))


def _seen(span: dict[str, Any], service: str) -> Seen:
    def of(kind: str) -> Iterable[str]:
        return (each["spanID"] for each in span["references"] if each["refType"] == kind)

    return Seen(
        id=span["spanID"],
        parent=next(iter(of("CHILD_OF")), None),
        service=service,
        name=span["operationName"],
        tags={tag["key"]: tag["value"] for tag in span["tags"]},
        links=tuple(of("FOLLOWS_FROM")),
        start=span["startTime"],
        duration=span["duration"],
    )
