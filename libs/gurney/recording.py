"""Whether this process records its spans, how many, and where they go."""

import os

from gurney.errors import Invalid
from gurney.exporter import Exporter, Watcher


class Recording:
    """What a process does with its spans; one for all its services."""

    exporter: Exporter | None = None
    #: Of the traces begun here.
    ratio = 1.0
    #: Of spans that do not say of which service they are.
    service = "gurney"


def record(endpoint: str, *, service: str, ratio: float = 1.0, watcher: Watcher | None = None) -> None:
    """Record spans of this process and send them; once, whatever is asked for later."""
    if Recording.exporter is None:
        Recording.exporter = Exporter(endpoint, watcher)
        Recording.ratio = ratio
        Recording.service = service


def record_as_configured(service: str) -> None:
    """Record where the environment says so: for clients, which have no settings of their own. Raises `Invalid`."""
    endpoint = os.environ.get("GURNEY_OTLP_ENDPOINT")
    if endpoint and Recording.exporter is None:
        try:
            record(endpoint, service=service, ratio=float(os.environ.get("GURNEY_TRACE_RATIO", "1")))
        except ValueError as error:
            raise Invalid(f"GURNEY_OTLP_ENDPOINT or GURNEY_TRACE_RATIO: {error}") from None


def flush() -> None:
    """Send what waits, for a moment. Blocks."""
    if Recording.exporter is not None:
        Recording.exporter.flush()


def stop() -> None:
    """Record no more. Blocks for a moment."""
    exporter, Recording.exporter = Recording.exporter, None
    if exporter is not None:
        exporter.close()


def is_recording() -> bool:
    return Recording.exporter is not None
