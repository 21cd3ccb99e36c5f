"""The only reader of clocks. Decisions take `now` as an argument."""

import time
from datetime import UTC, datetime

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now() -> datetime:
    """Return the wall clock in UTC, for time stamps that people and documents see."""
    return datetime.now(UTC)


def unix_ns() -> int:
    """Return nanoseconds since 1970, for spans."""
    return time.time_ns()


def monotonic() -> float:
    """Return seconds of a clock that never goes back, for durations."""
    return time.monotonic()


def rfc3339(at: datetime) -> str:
    """Return `at` as RFC 3339 in UTC with microseconds."""
    utc = at if at.tzinfo is UTC else at.astimezone(UTC)
    return utc.isoformat(timespec="microseconds")[: -len("+00:00")] + "Z"
