"""The way of spans to a collector that is slow, broken or away: nobody waits for it, and the log says so once."""

import io
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import structlog
from opentelemetry.exporter.otlp.proto.http import trace_exporter

from gurney import recording, spans, telemetry
from gurney.spans import Spans
from gurney.testing.collector import Collector
from gurney.watcher import Watcher

#: A program that asks a server which is not there.
PROGRAM = """
import asyncio, sys
from gurney.client import AsyncClient
from gurney.errors import Unavailable

async def main():
    async with AsyncClient(sys.argv[1], "token") as client:
        try:
            await client.jobs.get("job_1")
        except Unavailable:
            print("opentelemetry.sdk" in sys.modules)

asyncio.run(main())
"""


class Noting(Watcher):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.sent_spans = 0
        self.lost_spans = 0
        self.told: list[str] = []

    def sent(self, spans: int) -> None:
        self.sent_spans += spans

    def lost(self, spans: int) -> None:
        self.lost_spans += spans

    def away(self, why: str) -> None:
        self.told.append(f"away: {why}")

    def back(self) -> None:
        self.told.append("back")


@pytest.fixture
def watcher() -> Noting:
    return Noting()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches go out often, and the end waits briefly."""
    monkeypatch.setattr(spans, "INTERVAL_S", 0.01)
    monkeypatch.setattr(spans, "LAST_S", 0.2)


def until(holds: Callable[[], object]) -> None:
    while not holds():
        time.sleep(0.01)


def closed_port() -> str:
    """Return the URL of a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def end(made: Spans, count: int = 1, service: str | None = None) -> None:
    """End so many spans."""
    tracer = made.tracer_of(service)
    for _ in range(count):
        tracer.start_span("a").end()


def test_spans_arrive_in_batches(collector: Collector, watcher: Noting) -> None:
    """Many spans go in few requests, without being asked for, and each arrives once, under its service's name."""
    made = Spans(collector.endpoint, "test", 1.0, watcher)
    for number in range(10):
        end(made, 1000, f"{number % 2}")
    arrived = collector.until(lambda found: len(found) >= 10_000)
    made.close()
    assert len(arrived) == 10_000 == watcher.sent_spans
    assert len({span.span_id for _, span in arrived}) == 10_000
    assert len(collector.bodies) <= 20
    assert {service for service, _ in arrived} == {"gurney-0", "gurney-1"}


def test_the_end_sends_what_is_left(collector: Collector, watcher: Noting) -> None:
    """Whoever ends in order loses no span."""
    made = Spans(collector.endpoint, "test", 1.0, watcher)
    end(made)
    made.close()
    assert [service for service, _ in collector.spans] == ["gurney-test"]


@pytest.mark.usefixtures("hurried")
def test_a_collector_that_is_away_costs_nothing_but_spans(watcher: Noting, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits, memory is bounded, what does not fit is counted, it is told once, and the SDK says nothing."""
    made = Spans(closed_port(), "test", 1.0, watcher)
    end(made, spans.MOST + 100)
    assert watcher.lost_spans == 100
    until(lambda: watcher.told)
    began = time.monotonic()
    made.close()
    assert time.monotonic() - began < 10 * spans.LAST_S
    assert len(watcher.told) == 1
    assert "Connection refused" in watcher.told[0]
    assert not caplog.records


@pytest.mark.usefixtures("hurried")
def test_a_collector_that_never_answers_holds_nobody_up(watcher: Noting) -> None:
    """The end comes soon while a request hangs."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made = Spans(f"http://127.0.0.1:{listening.getsockname()[1]}", "test", 1.0, watcher)
        end(made)
        with listening.accept()[0] as connection:
            connection.recv(1)
            began = time.monotonic()
            made.close()
            assert time.monotonic() - began < 10 * spans.LAST_S
    assert watcher.sent_spans == 0


@pytest.mark.usefixtures("hurried")
def test_spans_wait_for_a_collector_that_comes_back(collector: Collector, watcher: Noting) -> None:
    """What a collector cannot take now is sent again; its going and its return are told once each."""
    collector.status = 503
    made = Spans(collector.endpoint, "test", 1.0, watcher)
    end(made)
    until(lambda: watcher.told)
    collector.status = 200
    end(made)
    until(lambda: watcher.sent_spans == 2)
    made.close()
    assert [told.split(":")[0] for told in watcher.told] == ["away", "back"]
    assert watcher.lost_spans == 0


@pytest.mark.usefixtures("hurried")
def test_what_a_collector_refuses_is_not_sent_again(collector: Collector, watcher: Noting) -> None:
    """A request that can never succeed is lost, counted, and the next one goes its way."""
    collector.status = 400
    made = Spans(collector.endpoint, "test", 1.0, watcher)
    end(made)
    until(lambda: watcher.lost_spans)
    assert "400" in watcher.told[0]
    collector.status = 200
    end(made)
    until(lambda: watcher.sent_spans)
    made.close()
    assert (watcher.sent_spans, watcher.lost_spans, watcher.told[1:]) == (1, 1, ["back"])


@pytest.mark.usefixtures("hurried")
def test_the_log_says_once_that_the_collector_is_away(monkeypatch: pytest.MonkeyPatch, collector: Collector) -> None:
    """The server's own watcher logs one line that it goes, one that it is back, and counts what is lost."""
    stream = io.StringIO()
    logger = structlog.wrap_logger(structlog.WriteLogger(stream), processors=telemetry.processors("json", stream))
    monkeypatch.setattr(telemetry, "_log", logger)
    lost = telemetry.SPANS.labels("lost")._value
    before = lost.get()
    collector.status = 400
    made = Spans(collector.endpoint, "test", 1.0, telemetry._Watcher())
    for number in range(1, 4):
        end(made)
        until(lambda number=number: lost.get() == before + number)  # type: ignore[misc]
    collector.status = 200
    end(made)
    made.close()
    gone, back = map(json.loads, stream.getvalue().splitlines())
    assert (gone["event"], gone["level"]) == ("the collector of traces does not answer", "warning")
    assert (back["event"], back["level"]) == ("the collector of traces is back", "info")


@pytest.mark.usefixtures("hurried")
def test_another_exporter_of_the_program_is_still_heard(watcher: Noting, caplog: pytest.LogCaptureFixture) -> None:
    """What OpenTelemetry says of an exporter that is not ours reaches the program that made it, meanwhile too."""
    made = Spans(closed_port(), "test", 1.0, watcher)
    end(made)
    until(lambda: watcher.told)
    logging.getLogger(trace_exporter.__name__).warning("of another")
    made.close()
    assert [record.getMessage() for record in caplog.records] == ["of another"]


@pytest.mark.parametrize("configured", [False, True])
def test_a_program_with_a_client_hears_nothing(*, configured: bool) -> None:
    """Without a collector a client loads no SDK; with one that is away its program ends soon, and sees no line."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GURNEY_")}
    if configured:
        environment["GURNEY_OTLP_ENDPOINT"] = closed_port()
    command = [sys.executable, "-c", PROGRAM, closed_port()]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30, check=True)
    assert (ended.stdout.strip(), ended.stderr) == (str(configured), "")


@pytest.mark.parametrize("endpoint", ["nonsense", "ftp://x", "http://"])
def test_a_collector_must_be_a_url(endpoint: str) -> None:
    """What is no URL is refused at once."""
    with pytest.raises(ValueError, match="no URL of a collector"):
        recording.record(endpoint, service="test")
    assert recording.Recording.tracer_of is None
