"""The W3C trace context, version 00: `00-<trace id>-<span id>-<flags>`, as it travels and as OpenTelemetry holds it."""

import hashlib
import re
from contextvars import ContextVar

from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

_FORM = re.compile("00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_SAMPLED = frozenset("13579bdf")
_ROOT = Context()

#: The id for the next span that is made; 0: one by chance.
NEXT_ID: ContextVar[int] = ContextVar("next_id", default=0)


def is_traceparent(text: str | None) -> bool:
    """Tell whether this is a trace context of the version that we know (W3C Trace Context, 3.2)."""
    return text is not None and _FORM.fullmatch(text) is not None


def is_sampled(traceparent: str) -> bool:
    """Tell whether the trace is recorded: of the flags, the last bit."""
    return traceparent[54] in _SAMPLED


def trace_of(traceparent: str) -> str:
    """Return the trace id."""
    return traceparent[3:35]


def context_of(traceparent: str) -> SpanContext:
    """Return what OpenTelemetry knows of a span elsewhere."""
    flags = TraceFlags(int(traceparent[53:], 16))
    return SpanContext(int(traceparent[3:35], 16), int(traceparent[36:52], 16), is_remote=True, trace_flags=flags)


def written(context: SpanContext) -> str:
    """Return a span's context as it travels."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def below(traceparent: str | None) -> Context:
    """Return OpenTelemetry's context of what is below a span elsewhere, or of a new trace."""
    return set_span_in_context(NonRecordingSpan(context_of(traceparent)), _ROOT) if traceparent else _ROOT


def link_to(traceparent: str, key: str) -> str:
    """Return the context of the span that has this key in the same trace."""
    return f"{traceparent[:36]}{derived(traceparent, key):016x}{traceparent[52:]}"


def derived(traceparent: str, key: str) -> int:
    """Return the id of the span of a trace that has this key."""
    return int.from_bytes(hashlib.blake2b(f"{trace_of(traceparent)}{key}".encode(), digest_size=8).digest(), "big")
