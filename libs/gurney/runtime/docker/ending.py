"""How a container's end is judged. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gurney.runtime.port import Cause, End

#: As shells have it.
NOT_EXECUTED = frozenset({126, 127})
_UNKNOWN_YEAR = 1970


@dataclass(frozen=True, slots=True)
class State:
    """What the daemon says of a container that is no longer running."""

    exit_code: int | None
    oom_killed: bool
    started_at: datetime | None
    stopped_at: datetime | None
    #: Why it could not be started.
    error: str = ""


def state_of(told: Mapping[str, Any]) -> State:
    """Return the `State` of an inspection in our words."""
    return State(
        exit_code=told.get("ExitCode"),
        oom_killed=bool(told.get("OOMKilled")),
        started_at=moment(told.get("StartedAt")),
        stopped_at=moment(told.get("FinishedAt")),
        error=told.get("Error") or "",
    )


def moment(text: str | None) -> datetime | None:
    """Return a time of the daemon's, which has nanoseconds; None for its year 1, which means never."""
    if not text:
        return None
    whole, _, fraction = text.removesuffix("Z").partition(".")
    found = datetime.fromisoformat(f"{whole}.{(fraction + '000000')[:6]}").replace(tzinfo=UTC)
    return found if found.year > _UNKNOWN_YEAR else None


def end_of(
    state: State,
    asked: Cause | None,
    *,
    doubt: str = "",
    peak: int | None = None,
    cpu_s: float | None = None,
) -> End:
    """Return the end of a run; `asked`: why we ended it, if we did.

    `doubt`: why the exit code is not the application's own, such as that of a container that its daemon took down with
    it: then nobody knows how it ended.
    """
    if state.started_at is None:
        return _not_begun(state)
    stopped = max(state.stopped_at or state.started_at, state.started_at)
    cause = asked or (Cause.MEMORY if state.oom_killed else Cause.LOST if doubt else Cause.EXITED)
    return End(
        cause=cause,
        exit_code=None if cause is Cause.LOST else state.exit_code,
        started_at=state.started_at,
        stopped_at=stopped,
        duration_s=(stopped - state.started_at).total_seconds(),
        peak_memory=peak,
        cpu_s=cpu_s,
        message=doubt if cause is Cause.LOST else "",
    )


def lost(message: str, started_at: datetime | None = None) -> End:
    """Return the end of a run of which nobody knows."""
    return End(Cause.LOST, None, started_at, None, None, message=message)


def lapsed() -> End:
    """Return the end of a run that never began, because its lease had lapsed."""
    return End(Cause.LEASE, None, None, None, None)


def not_started(message: str) -> End:
    """Return the end of a run that could not be begun."""
    return End(Cause.NOT_STARTED, None, None, None, None, message=message)


def _not_begun(state: State) -> End:
    if state.exit_code in NOT_EXECUTED:
        return End(Cause.EXITED, state.exit_code, None, None, None, message=state.error)
    return not_started(state.error or "the container could not be started")
