"""The W3C trace context, version 00: `00-<trace id>-<span id>-<flags>`, and ids that follow from it."""

import hashlib
import re

_FORM = re.compile("00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_SAMPLED = frozenset("13579bdf")


def is_traceparent(text: str | None) -> bool:
    """Tell whether this is a trace context of the version that we know (W3C Trace Context, 3.2)."""
    return text is not None and _FORM.fullmatch(text) is not None


def is_sampled(traceparent: str) -> bool:
    """Tell whether the trace is recorded: of the flags, the last bit."""
    return traceparent[54] in _SAMPLED


def trace_of(traceparent: str) -> str:
    """Return the trace id."""
    return traceparent[3:35]


def span_of(traceparent: str) -> str:
    """Return the span id."""
    return traceparent[36:52]


def with_span(traceparent: str, span_id: str) -> str:
    """Return the context of another span of the same trace."""
    return f"{traceparent[:36]}{span_id}{traceparent[52:]}"


def derived(traceparent: str, key: str) -> str:
    """Return the id of the span of a trace that has this key."""
    return hashlib.blake2b(f"{traceparent[3:35]}{key}".encode(), digest_size=8).hexdigest()


def link_to(traceparent: str, key: str) -> str:
    """Return the context of the span that has this key in the same trace."""
    return with_span(traceparent, derived(traceparent, key))
