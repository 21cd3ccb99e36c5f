"""How log lines look to people, and to machines."""

import io
import json
import sys
from typing import Literal

import pytest
import structlog

from gurney import telemetry


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def logged(stream: io.StringIO, log_format: Literal["auto", "json", "text"], level: str = "info") -> str:
    """Log one event with an error in a scope that holds a secret; returns what was written."""
    logger = structlog.wrap_logger(
        structlog.WriteLogger(stream), processors=telemetry.processors(log_format, stream), part="job"
    )
    secret = "NOMEN-NESCIO"
    try:
        raise ValueError(len(secret))
    except ValueError:
        with telemetry.span("test", telemetry.INTERNAL):
            getattr(logger, level)("job ended", job="job_1", exc_info=sys.exc_info())
    return stream.getvalue()


def test_text() -> None:
    """A line for people has time, level, message and key=value, a plain traceback; no trace, no value of a variable."""
    first, *rest = logged(io.StringIO(), "text").splitlines()
    time, _, more = first.partition(" ")
    assert len(time) == len("12:00:00")
    assert more.split() == ["[info", "]", "job", "ended", "part=job", "job=job_1"]
    assert rest[0].startswith("Traceback")
    assert rest[-1] == "ValueError: 12"
    assert not any("NESCIO" in line and "secret" not in line for line in rest)


def test_json() -> None:
    """A line for machines is one JSON object, with its trace and the traceback."""
    (line,) = logged(io.StringIO(), "json").splitlines()
    told = json.loads(line)
    assert told.keys() == {"part", "job", "event", "trace", "level", "at", "exception"}
    assert (told["event"], told["level"]) == ("job ended", "info")


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
