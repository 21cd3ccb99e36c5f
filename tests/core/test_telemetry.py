"""How log lines look to people, and to machines."""

import io
import json
import logging
import sys
from typing import Any, Literal

import pytest
import structlog

from gurney import ids, logs, telemetry
from gurney.consume import Reject
from gurney.errors import NatsUnavailable, NotFound


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def logger_to(stream: io.StringIO, log_format: Literal["auto", "json", "text"], *, verbose: bool = False) -> Any:
    steps = telemetry.processors(log_format, stream, verbose=verbose)
    every = structlog.make_filtering_bound_logger(logging.DEBUG)
    return structlog.wrap_logger(structlog.WriteLogger(stream), processors=steps, wrapper_class=every, part="job")


def logged(stream: io.StringIO, log_format: Literal["auto", "json", "text"], level: str = "info") -> str:
    """Log one event with an error in a scope that holds a secret; returns what was written."""
    secret = "NOMEN-NESCIO"
    try:
        raise ValueError(secret)
    except ValueError:
        with telemetry.span("test", telemetry.INTERNAL):
            getattr(logger_to(stream, log_format), level)("job ended", job="job_1", exc_info=sys.exc_info())
    return stream.getvalue()


def test_text() -> None:
    """A line for people has time, level, message and key=value, a plain traceback; no trace, no value, no text."""
    first, *rest = logged(io.StringIO(), "text").splitlines()
    time, _, more = first.partition(" ")
    assert len(time) == len("12:00:00")
    assert more.split() == ["[info", "]", "job", "ended", "part=job", "job=job_1"]
    assert rest[0].startswith("Traceback")
    assert rest[-1].startswith("ValueError at test_telemetry.py:")
    assert "NESCIO" not in "".join(rest)


def test_json() -> None:
    """A line for machines is one JSON object, with its trace and the traceback."""
    (line,) = logged(io.StringIO(), "json").splitlines()
    told = json.loads(line)
    assert told.keys() == {"part", "job", "event", "trace", "level", "at", "exception"}
    assert (told["event"], told["level"]) == ("job ended", "info")
    assert "NESCIO" not in line


def test_lines_know_what_they_are_about() -> None:
    """A line within a span has its trace, job and run, at both levels; what it says itself comes first."""
    run = f"{ids.new_id('job')}-3"
    for verbose, level in ((False, "info"), (True, "debug")):
        stream = io.StringIO()
        with telemetry.span("test", telemetry.INTERNAL, about=run) as span:
            getattr(logger_to(stream, "json", verbose=verbose), level)("a")
            getattr(logger_to(stream, "json", verbose=verbose), level)("b", job="job_other")
        first, second = map(json.loads, stream.getvalue().splitlines())
        assert (first["job"], first["run"], first["trace"]) == (run[:-2], run, span.traceparent[3:35])
        assert second["job"] == "job_other"
        assert "run" not in second


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NotFound("there is no file MARK^NAME.dcm"), "NotFound (not_found)"),
        (NatsUnavailable("cannot reach NATS at nats://x"), "NatsUnavailable: cannot reach NATS at nats://x"),
        (FileNotFoundError(2, "No such file", "MARK^NAME.dcm"), "FileNotFoundError: No such file or directory"),
        (KeyError("MARK^NAME"), "KeyError"),
        (Reject("MARK^NAME cannot be"), "Reject"),
    ],
)
def test_errors_are_said_without_what_they_quote(error: Exception, said: str) -> None:
    """The default level tells kind, code and place of an error, and texts about the server alone; the other all."""
    told = []
    for verbose in (False, True):
        stream = io.StringIO()
        logger_to(stream, "json", verbose=verbose).warning("failed", error=error)
        told.append(json.loads(stream.getvalue())["error"])
    assert told == [said, repr(error)]


def test_a_chain_of_errors_is_told_without_texts() -> None:
    """A traceback has the frames of an error and of its causes, and none of their texts."""
    stream = io.StringIO()
    try:
        try:
            raise KeyError("MARK^NAME")
        except KeyError as cause:
            raise NotFound("no MARK^NAME") from cause
    except NotFound:
        logger_to(stream, "json").error("failed", exc_info=True)
    told = json.loads(stream.getvalue())["exception"]
    assert "MARK" not in told
    assert told.index("KeyError at") < told.index("NotFound (not_found)")
    assert told.count("in test_a_chain_of_errors_is_told_without_texts") == 2


def test_libraries_log_as_we_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a library logs is a line as ours are; what it may have quoted comes at the verbose level only."""
    told = []
    for verbose in (False, True):
        stream = io.StringIO()
        logger = logger_to(stream, "json", verbose=verbose)
        monkeypatch.setattr(structlog, "get_logger", lambda logger=logger, **known: logger.bind(**known))
        for text, given in (("task failed\nfuture: <Task MARK>", ()), ("cannot send %s", ("MARK",))):
            logs.Bridge(verbose=verbose).handle(logging.LogRecord("asyncio", logging.ERROR, "", 0, text, given, None))
        told.append([json.loads(line) for line in stream.getvalue().splitlines()])
    short, whole = told
    assert [line["event"] for line in short] == ["task failed", "cannot send %s"]
    assert {(line["part"], line["level"]) for line in short} == {("asyncio", "error")}
    assert all("MARK" in line["event"] for line in whole)


@pytest.mark.parametrize(
    ("stream", "log_format", "as_json"),
    [
        (io.StringIO, "auto", True),
        (Terminal, "auto", False),
        (Terminal, "json", True),
        (io.StringIO, "text", False),
    ],
)
def test_who_reads(stream: type[io.StringIO], log_format: Literal["auto", "json", "text"], *, as_json: bool) -> None:
    """Unless the setting says so itself, a terminal gets lines for people and anything else JSON."""
    assert logged(stream(), log_format).startswith("{") == as_json


def test_warnings_stand_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a warning and an error have colours of their own, unless the person wants no colours."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    colours = {logged(Terminal(), "auto", level).split("[")[4] for level in ("info", "warning", "error")}
    assert len(colours) == 3
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in logged(Terminal(), "auto", "warning")
    assert "\x1b" not in logged(io.StringIO(), "text", "warning")
