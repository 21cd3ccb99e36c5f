"""The way of spans to a collector that is slow, broken or away: nobody waits for it, and the log says so once."""

import io
import json
import socket
import time
from collections.abc import Iterator

import pytest
import structlog

from gurney import exporter as sending
from gurney import recording, telemetry
from gurney.exporter import Exporter
from gurney.otlp import encode
from gurney.testing.collector import Collector

CONTEXT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SPAN = encode(CONTEXT, "", name="a", kind=1, times=(1, 2), attributes=())


class Watcher:
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
def watcher() -> Watcher:
    return Watcher()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


def closed_port() -> str:
    """Return the URL of a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_spans_arrive_in_batches(collector: Collector, watcher: Watcher) -> None:
    """Many spans go in few requests, without being asked for, and each arrives once."""
    exporter = Exporter(collector.endpoint, watcher)
    for number in range(10_000):
        exporter.put(f"gurney-{number % 2}", SPAN)
    arrived = collector.until(lambda spans: len(spans) >= 10_000)
    exporter.close()
    assert len(arrived) == 10_000 == watcher.sent_spans
    assert len(collector.bodies) <= 5
    assert {service for service, _ in arrived} == {"gurney-0", "gurney-1"}


def test_the_end_sends_what_is_left(collector: Collector, watcher: Watcher) -> None:
    """Whoever ends in order loses no span."""
    exporter = Exporter(collector.endpoint, watcher)
    exporter.put("gurney", SPAN)
    exporter.close()
    assert len(collector.spans) == 1


def test_a_collector_that_is_away_costs_nothing_but_spans(watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits, memory is bounded, what does not fit is counted, and it is told once that nobody is there."""
    monkeypatch.setattr(sending, "INTERVAL_S", 0.01)
    exporter = Exporter(closed_port(), watcher)
    for _ in range(sending.MOST + sending.BATCH + 100):
        exporter.put("gurney", SPAN)
    while not watcher.told:
        time.sleep(0.01)
    exporter.put("gurney", SPAN)
    began = time.monotonic()
    exporter.close()
    assert time.monotonic() - began < 2 * sending.LAST_S
    assert watcher.told == ["away: ConnectionRefusedError"]
    assert 100 <= watcher.lost_spans <= sending.BATCH + 101
    assert len(exporter._queue) <= sending.MOST


def test_a_collector_that_never_answers_holds_nobody_up(watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans are taken at once and the end comes soon, while a request hangs."""
    monkeypatch.setattr(sending, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(sending, "LAST_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        exporter = Exporter(f"http://127.0.0.1:{listening.getsockname()[1]}", watcher)
        exporter.put("gurney", SPAN)
        exporter.flush(0.2)
        exporter.close()
    assert watcher.told == ["away: TimeoutError"]
    assert watcher.sent_spans == 0


def test_spans_wait_for_a_collector_that_comes_back(
    collector: Collector, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a collector cannot take now is sent again; its going and its return are told once each."""
    monkeypatch.setattr(sending, "INTERVAL_S", 0.01)
    collector.status = 503
    exporter = Exporter(collector.endpoint, watcher)
    exporter.put("gurney", SPAN)
    while len(collector.bodies) < 3:
        time.sleep(0.01)
    collector.status = 200
    while not watcher.sent_spans:
        time.sleep(0.01)
    exporter.close()
    assert watcher.told == ["away: status 503", "back"]
    assert (watcher.sent_spans, watcher.lost_spans) == (1, 0)


def test_what_a_collector_refuses_is_not_sent_again(collector: Collector, watcher: Watcher) -> None:
    """A request that can never succeed is lost, counted, and the next one goes its way."""
    collector.status = 400
    exporter = Exporter(collector.endpoint, watcher)
    exporter.put("gurney", SPAN)
    exporter.flush()
    assert (watcher.lost_spans, watcher.told) == (1, ["away: status 400"])
    collector.status = 200
    exporter.put("gurney", SPAN)
    exporter.close()
    assert (watcher.sent_spans, watcher.told[1:]) == (1, ["back"])


def test_the_log_says_once_that_the_collector_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's own watcher logs one line and counts what is lost."""
    stream = io.StringIO()
    logger = structlog.wrap_logger(structlog.WriteLogger(stream), processors=telemetry.processors("json", stream))
    monkeypatch.setattr(telemetry, "_log", logger)
    exporter = Exporter(closed_port(), telemetry._Watcher())
    for _ in range(3):
        exporter.put("gurney", SPAN)
        exporter.flush()
    exporter.close()
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["event"] == "the collector of traces does not answer"


@pytest.mark.parametrize("endpoint", ["nonsense", "ftp://x", "http://"])
def test_a_collector_must_be_a_url(endpoint: str) -> None:
    """What is no URL is refused at once."""
    with pytest.raises(ValueError, match="no URL of a collector"):
        recording.record(endpoint, service="test")
    assert not recording.is_recording()
