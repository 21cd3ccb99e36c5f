"""Whether this process records its spans, how many, and where they go."""

import asyncio
import atexit
import os
import threading
from collections.abc import Callable

from opentelemetry.trace import Tracer

from gurney.errors import Invalid
from gurney.watcher import Watcher


class Recording:
    """What a process does with its spans; one for all its services."""

    #: Makes the spans of a service, by its name or None; None: nothing is recorded.
    tracer_of: Callable[[str | None], Tracer] | None = None
    close: Callable[[], None] | None = None


_SETTING_UP = threading.Lock()


def record(endpoint: str, *, service: str, ratio: float = 1.0, watcher: Watcher | None = None) -> None:
    """Record spans of this process and send them; once, whatever is asked for later."""
    with _SETTING_UP:
        if Recording.tracer_of is None:
            from gurney.spans import Spans  # whoever records nothing needs no SDK

            spans = Spans(endpoint, service, ratio, watcher or Watcher())
            Recording.tracer_of, Recording.close = spans.tracer_of, spans.close
            atexit.register(stop)


async def record_as_configured(service: str) -> None:
    """Record where the environment says so: for clients, which have no settings of their own. Raises `Invalid`."""
    endpoint = os.environ.get("GURNEY_OTLP_ENDPOINT")
    if endpoint and Recording.tracer_of is None:
        try:
            ratio = float(os.environ.get("GURNEY_TRACE_RATIO", "1"))
            await asyncio.to_thread(record, endpoint, service=service, ratio=ratio)  # it loads the SDK
        except ValueError as error:
            raise Invalid(f"GURNEY_OTLP_ENDPOINT or GURNEY_TRACE_RATIO: {error}") from None


def is_recording() -> bool:
    return Recording.tracer_of is not None


def stop() -> None:
    """Record no more and send what waits. Blocks for a moment."""
    atexit.unregister(stop)
    close, Recording.tracer_of, Recording.close = Recording.close, None, None
    if close is not None:
        close()
