"""Spans: what happens, for how long, because of what, across services (W3C Trace Context, OpenTelemetry's model).

A span is a context; inside, it is the current one. It is recorded where a collector is configured and its trace is
sampled; everywhere else only the trace's ids travel, so that an error can be found in the logs. A span knows the
service that it is of (several may live in one process) and the job and run that it is about.
"""

import random
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from datetime import datetime
from types import TracebackType
from typing import Self

from gurney.clock import unix_ns
from gurney.errors import GurneyError
from gurney.ids import new_traceparent
from gurney.otlp import Value, encode
from gurney.recording import Recording
from gurney.traceparent import derived, is_sampled, is_traceparent, span_of, trace_of, with_span

INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER = range(1, 6)

_ABOUT = re.compile(r"(job_[0-9a-hjkmnp-tv-z]{26})(-\d{1,4})?")
#: From here on an error is a fault of the server.
_FAULT = 500


class Span:
    """One thing that happens; see `span`. `begin` and `end` are for what is not to be the current span meanwhile."""

    __slots__ = (
        "_above",
        "_attributes",
        "_began",
        "_failed",
        "_key",
        "_kind",
        "_links",
        "_name",
        "_parent",
        "_parent_id",
        "_token",
        "_until",
        "is_recorded",
        "job",
        "run",
        "service",
        "traceparent",
    )

    def __init__(self, name: str, kind: int, parent: str | None, service: str | None) -> None:
        self._name = name
        self._kind = kind
        self._parent = parent
        self.service = service
        self.job: str | None = None
        self.run: str | None = None
        self.traceparent = ""
        self.is_recorded = False
        self._above: Span | None = None
        self._attributes: dict[str, Value] | None = None
        self._began = 0
        self._failed = False
        self._key: str | None = None
        self._links: Sequence[str] = ()
        self._parent_id = ""
        self._token: Token[Span | None] | None = None
        self._until = 0

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
        if context is None:
            self._begin_trace()
        elif Recording.exporter is not None and is_sampled(context):
            self._record(context, span_of(context))
        else:
            self.traceparent = context
        return self

    def _begin_trace(self) -> None:
        context = new_traceparent()
        if Recording.exporter is not None and random.random() < Recording.ratio:  # noqa: S311  # not a secret
            self._record(f"{context[:53]}01", "")
        else:
            self.traceparent = context

    def _record(self, context: str, parent_id: str) -> None:
        self.is_recorded = True
        self._parent_id = parent_id
        span_id = derived(context, self._key) if self._key else f"{random.getrandbits(64) or 1:016x}"
        self.traceparent = with_span(context, span_id)
        self._began = self._began or unix_ns()

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
        if self.is_recorded:
            if self._attributes is None:
                self._attributes = {}
            self._attributes[key] = value

    def fail(self, kind: str, *, fault: bool = True) -> None:
        """Say that it went wrong; `fault`: it is to stand out."""
        self.note("error.type", kind)
        self._failed = self._failed or fault

    def until(self, at: datetime | None) -> None:
        """Say when it ended, where that was before now."""
        self._until = _ns(at) if at else 0

    def drop(self) -> None:
        """Do not export: whoever takes this up again does, under the same id."""
        self.is_recorded = False

    def end(self, error: BaseException | None = None) -> None:
        """Hand the span to the exporter."""
        if error is not None:
            self.failed(error)
        exporter = Recording.exporter
        if not self.is_recorded or exporter is None:
            return
        self.is_recorded = False
        attributes = self._attributes or {}
        if self.job:
            attributes["gurney.job"] = self.job
        if self.run:
            attributes["gurney.run"] = self.run
        times = (self._began, max(self._began, self._until or unix_ns()))
        written = encode(
            self.traceparent,
            self._parent_id,
            name=self._name,
            kind=self._kind,
            times=times,
            attributes=attributes.items(),
            links=self._links,
            failed=self._failed,
        )
        exporter.put(f"gurney-{self.service or Recording.service}", written)

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
    kind: int,
    parent: str | None = None,
    *,
    service: str | None = None,
    about: str | None = None,
    attributes: Mapping[str, Value] | None = None,
    links: Sequence[str] = (),
    key: str | None = None,
    since: datetime | None = None,
) -> Span:
    """Return a span to be entered.

    `parent` is a traceparent from elsewhere; `about` a job or run. `key` gives an id that another process would derive
    from the same trace and key, too; `since` a beginning before now.
    """
    made = Span(name, kind, parent, service)
    if about is not None:
        made.about(about)
    if Recording.exporter is not None:
        made._attributes = dict(attributes) if attributes else None  # noqa: SLF001
        made._links = links  # noqa: SLF001
        made._key = key  # noqa: SLF001
        made._began = _ns(since) if since else 0  # noqa: SLF001
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


def began_at(at: datetime | None) -> None:
    """Say when what the current span shows really began, where that is known by now."""
    current = _CURRENT.get()
    if current is not None and at is not None:
        current._began = _ns(at)  # noqa: SLF001


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
