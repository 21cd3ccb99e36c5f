"""Log lines: JSON with the ids of trace, job and run for machines, short text for people; what they say of errors.

No line of the default level holds anything of a payload. So calls hand errors over as they are (`error=error`), and
what is written of them is decided here: texts of errors may quote a file's name, which may be a patient's. The verbose
level writes them whole.
"""

import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import TextIO

import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

from gurney import tracing
from gurney.errors import AlreadyRunning, GurneyError, ImageUnavailable, Unavailable

#: Where a text that a library put together itself may begin to quote.
_QUOTED = re.compile(r"[\n(<:]")

#: Errors whose texts are about the server alone.
PLAIN = (Unavailable, ImageUnavailable, AlreadyRunning)


def said(error: BaseException) -> str:
    """Return what the default level says of an error: kind, code and place, no text that may quote a payload."""
    kind = type(error).__name__
    if isinstance(error, PLAIN):
        return f"{kind}: {error}"
    if isinstance(error, GurneyError):
        return f"{kind} ({error.code})"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{kind}: {os.strerror(error.errno)}"
    frames = traceback.extract_tb(error.__traceback__)
    return f"{kind} at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else kind  # noqa: PTH119


def trace_of(error: BaseException) -> str:
    """Return a traceback without the errors' texts."""
    lines: list[str] = []
    at: BaseException | None = error
    while at is not None:
        stack = traceback.extract_tb(at.__traceback__)
        frames = [f'  File "{each.filename}", line {each.lineno}, in {each.name}' for each in stack]
        lines = ["Traceback (most recent call last):", *frames, said(at), *lines]
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return "\n".join(lines)


def _whole(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip("\n")


class Errors:
    """Writes the errors of a line: in short at the default level, whole at the verbose one."""

    def __init__(self, *, verbose: bool) -> None:
        self._told = repr if verbose else said
        self._traced = _whole if verbose else trace_of

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        for key, value in event.items():
            if isinstance(value, BaseException) and key != "exc_info":
                event[key] = self._told(value)
        error = _error_of(event.pop("exc_info", None))
        if error is not None:
            event["exception"] = self._traced(error)
        return event


def _error_of(exc_info: ExcInfo | BaseException | bool | None) -> BaseException | None:  # noqa: FBT001  # as logging has it
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return exc_info[1]
    return sys.exc_info()[1] if exc_info else None


class Bridge(logging.Handler):
    """Writes what libraries log as lines like ours. Of their texts the default level shows what stands in the code."""

    def __init__(self, *, verbose: bool) -> None:
        super().__init__(logging.WARNING)
        self._verbose = verbose

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage() if self._verbose else _QUOTED.split(str(record.msg), maxsplit=1)[0].rstrip()
        structlog.get_logger(part=record.name).log(record.levelno, text, exc_info=record.exc_info)


def ids(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Add the ids of the current span: job, run and trace."""
    span = tracing.current()
    if span is not None:
        if span.job and "job" not in event:
            event["job"] = span.job
            if span.run and "run" not in event:
                event["run"] = span.run
        event["trace"] = span.traceparent[3:35]
    return event


def processors(log_format: str, stream: TextIO, *, verbose: bool = False) -> Sequence[Processor]:
    """Return what makes lines of events: for machines with all there is, for people without what only machines join."""
    steps = structlog.processors
    begin: list[Processor] = [structlog.contextvars.merge_contextvars, steps.add_log_level, Errors(verbose=verbose)]
    terminal = stream.isatty()
    if log_format == "json" or (log_format == "auto" and not terminal):
        at = steps.TimeStamper(fmt="iso", utc=True, key="at")
        return [*begin, ids, at, steps.JSONRenderer()]
    lines = structlog.dev.ConsoleRenderer(
        colors=terminal and not os.environ.get("NO_COLOR"), sort_keys=False, timestamp_key="at"
    )
    return [*begin, steps.TimeStamper(fmt="%H:%M:%S", utc=False, key="at"), lines]
