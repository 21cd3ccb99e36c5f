"""Spans: what happens, for how long, because of what, across services (W3C Trace Context, OpenTelemetry's model).

A span is a context; inside, it is the current one. Where a collector is configured and the trace is sampled it stands
for a span of OpenTelemetry's SDK; everywhere else only the trace's ids travel, so that an error can be found in the
logs. A span knows the service that it is of (several may live in one process) and the job and run that it is about.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from datetime import datetime
from types import TracebackType
from typing import Self

from opentelemetry import trace
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, Tracer

from gurney.errors import GurneyError
from gurney.ids import new_traceparent
from gurney.recording import Recording
from gurney.traceparent import NEXT_ID, below, context_of, derived, is_sampled, is_traceparent, trace_of, written

INTERNAL, SERVER, CLIENT, CONSUMER = SpanKind.INTERNAL, SpanKind.SERVER, SpanKind.CLIENT, SpanKind.CONSUMER

Value = str | int

_ABOUT = re.compile(r"(job_[0-9a-hjkmnp-tv-z]{26})(-\d{1,4})?")
#: From here on an error is a fault of the server.
_FAULT = 500
_FAILED = Status(StatusCode.ERROR)


class Span:
    """One thing that happens; see `span`. `begin` and `end` are for what is not to be the current span meanwhile."""

    __slots__ = (
        "_above",
        "_attributes",
        "_failed",
        "_key",
        "_kind",
        "_links",
        "_name",
        "_parent",
        "_quiet",
        "_real",
        "_since",
        "_token",
        "_until",
        "job",
        "run",
        "service",
        "traceparent",
    )

    def __init__(self, name: str, kind: SpanKind, parent: str | None, service: str | None, *, quiet: bool) -> None:
        self._name = name
        self._kind = kind
        self._parent = parent
        self._quiet = quiet
        self.service = service
        self.job: str | None = None
        self.run: str | None = None
        self.traceparent = ""
        self._above: Span | None = None
        self._attributes: dict[str, Value] = {}
        self._failed = False
        self._key: str | None = None
        self._links: Sequence[str] = ()
        self._real: trace.Span | None = None
        self._since: int | None = None
        self._token: Token[Span | None] | None = None
        self._until: int | None = None

    def begin(self) -> Self:
        """Place the span in its trace; without a parent, that of the current span, or a new one."""
        above = _CURRENT.get()
        context = _known(self._parent) if self._parent else None
        if above is not None and (context is None or trace_of(context) == trace_of(above.traceparent)):
            context = context or above.traceparent
            self._above = above
            self.service = self.service or above.service
            if self.job is None:
                self.job, self.run = above.job, above.run
            else:
                above.about(self.run or self.job)
        tracer_of = Recording.tracer_of
        if tracer_of is None or self._quiet or (context is not None and not is_sampled(context)):
            self.traceparent = context or new_traceparent()
        else:
            self._record(tracer_of(self.service), context)
        return self

    def _record(self, tracer: Tracer, context: str | None) -> None:
        if context and self._key:
            NEXT_ID.set(derived(context, self._key))
        links = [Link(context_of(each)) for each in self._links]
        real = tracer.start_span(self._name, below(context), self._kind, None, links, self._since)
        if real.is_recording():
            self._real = real
        made = real.get_span_context()
        self.traceparent = written(made) if made.is_valid else context or new_traceparent()

    def about(self, job_or_run: str | None) -> None:
        """Say which job or run this is about; so are the spans above it in this process that do not know yet."""
        if job_or_run is None or self.job is not None:
            return
        match = _ABOUT.fullmatch(job_or_run)
        span: Span | None = self if match else None
        while match and span is not None and span.job is None:
            span.job, span.run = match[1], match[0] if match[2] else None
            span = span._above  # noqa: SLF001

    def note(self, key: str, value: Value) -> None:
        """Add an attribute; never a name or a text of a payload."""
        if self._real is not None:
            self._attributes[key] = value

    def fail(self, kind: str, *, fault: bool = True) -> None:
        """Say that it went wrong; `fault`: it is to stand out."""
        self.note("error.type", kind)
        self._failed = self._failed or fault

    def until(self, at: datetime | None) -> None:
        """Say when it ended, where that was before now."""
        self._until = _ns(at) if at else None

    def drop(self) -> None:
        """Do not export: whoever takes this up again does, under the same id."""
        self._real = None

    def end(self, error: BaseException | None = None) -> None:
        """End the span; it will be sent."""
        if error is not None:
            self.failed(error)
        real, self._real = self._real, None
        if real is None:
            return
        if self.job:
            self._attributes["gurney.job"] = self.job
        if self.run:
            self._attributes["gurney.run"] = self.run
        real.set_attributes(self._attributes)
        if self._failed:
            real.set_status(_FAILED)
        real.end(self._until)

    def failed(self, error: BaseException) -> None:
        """Say what went wrong. What the asker did wrong does not stand out."""
        if isinstance(error, GurneyError):
            self.fail(error.code, fault=error.status >= _FAULT)
        else:
            self.fail(type(error).__name__, fault=isinstance(error, Exception))

    def __enter__(self) -> Self:
        self.begin()
        self._token = _CURRENT.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _CURRENT.reset(self._token)
        self.end(error)


_CURRENT: ContextVar[Span | None] = ContextVar("span", default=None)


def span(
    name: str,
    kind: SpanKind,
    parent: str | None = None,
    *,
    service: str | None = None,
    about: str | None = None,
    attributes: Mapping[str, Value] | None = None,
    links: Sequence[str] = (),
    key: str | None = None,
    since: datetime | None = None,
    quiet: bool = False,
) -> Span:
    """Return a span to be entered.

    `parent` is a traceparent from elsewhere; `about` a job or run. `key` gives an id that another process would derive
    from the same trace and key, too; `since` a beginning before now. A `quiet` one is never recorded: what is below it
    stands below the one above it.
    """
    made = Span(name, kind, parent, service, quiet=quiet)
    if about is not None:
        made.about(about)
    if Recording.tracer_of is not None and not quiet:
        made._attributes = dict(attributes or {})  # noqa: SLF001
        made._links = links  # noqa: SLF001
        made._key = key  # noqa: SLF001
        made._since = _ns(since) if since else None  # noqa: SLF001
    return made


def joined(name: str, parent: str | None, *, service: str, about: str) -> AbstractContextManager[object]:
    """Return a context that is in the trace of `parent`: a span with a link to the current one, if that is of another.

    So what happens to a job is in the job's trace, whoever asks for it.
    """
    current = _CURRENT.get()
    known = _known(parent)
    if known is None or (current is not None and trace_of(current.traceparent) == trace_of(known)):
        return nullcontext()
    links = (current.traceparent,) if current is not None else ()
    return span(name, INTERNAL, known, service=service, about=about, links=links)


def caused(known: str | None) -> str | None:
    """Return the context for what follows in the trace of `known`: the current one where that is of it."""
    current = _CURRENT.get()
    if current is None:
        return known
    return current.traceparent if known is None or trace_of(known) == trace_of(current.traceparent) else known


def about(job_or_run: str | None) -> None:
    """Say which job or run the current span is about."""
    current = _CURRENT.get()
    if current is not None:
        current.about(job_or_run)


def current() -> Span | None:
    """Return the current span."""
    return _CURRENT.get()


def traceparent() -> str | None:
    """Return the current W3C trace context."""
    current = _CURRENT.get()
    return current.traceparent if current else None


def current_trace_id() -> str | None:
    """Return the current trace id in hexadecimal, None outside any trace."""
    current = _CURRENT.get()
    return trace_of(current.traceparent) if current else None


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1e6) * 1000


def _known(parent: str | None) -> str | None:
    return parent if is_traceparent(parent) else None
