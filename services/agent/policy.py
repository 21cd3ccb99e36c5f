"""What the agent decides without doing anything: outcomes, whether to try again, whether a start fits. Pure."""

import errno
from collections.abc import Iterable, Sequence

from gurney.errors import Conflict, Forbidden, GurneyError, IntegrityError, Internal, NotFound
from gurney.model.base import Reason
from gurney.model.job import Timings
from gurney.model.resources import Amount
from gurney.model.run import Outcome, StartRun
from gurney.runtime.port import Cause, End

#: How often something is tried whose fault may be of this moment, though it does not look so.
DOUBTFUL_TRIES = 4
#: Faults of the file system that time does not heal.
_LASTING = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.EACCES,
        errno.EPERM,
        errno.ENAMETOOLONG,
        errno.EILSEQ,
        errno.EINVAL,
        errno.ELOOP,
    }
)
#: What rounding may add up to when many small shares of cores are counted.
_ROUNDING = 1e-6


def outcome_of(end: End, timings: Timings) -> Outcome:
    """Return how a run ended that the runtime has begun, or could not begin."""
    base = Outcome(
        ending="failed",
        exit_code=end.exit_code,
        started_at=end.started_at,
        stopped_at=end.stopped_at,
        timings=timings.but(running=end.duration_s),
        usage=None if end.peak_memory is None else {"peak_memory": end.peak_memory},
    )
    match end.cause:
        case Cause.EXITED if end.exit_code == 0:
            return base.but(ending="succeeded")
        case Cause.EXITED:
            told = f"the application ended with exit code {end.exit_code}"
            return base.but(reason=_reason("exit_nonzero", told, end.message))
        case Cause.MEMORY:
            return base.but(reason=_reason("oom_killed", "the application went past its memory", end.message))
        case Cause.TIMEOUT:
            return base.but(reason=_reason("timeout", "the application took longer than it may", end.message))
        case Cause.STOPPED:
            return base.but(ending="canceled", reason=_reason("canceled", "the run was stopped", end.message))
        case Cause.LEASE:
            return base.but(ending="lost", reason=_reason("node_lost", "the node's lease lapsed", end.message))
        case Cause.LOST:
            return base.but(ending="lost", reason=_reason("node_lost", "the host cut the run off", end.message))
        case Cause.NOT_STARTED:  # a command that cannot be executed is an exit code; this is the host
            return base.but(ending="lost", reason=_reason("internal", "the run could not be begun", end.message))


def canceled(timings: Timings) -> Outcome:
    """Return the outcome of a run that was stopped before it began."""
    reason = Reason.of("canceled", "the run was stopped before it began")
    return Outcome(ending="canceled", reason=reason, timings=timings)


def lost(code: str, message: str, timings: Timings) -> Outcome:
    """Return the outcome of an attempt that the infrastructure failed."""
    return Outcome(ending="lost", reason=Reason.of(code, message), timings=timings)


def rejected(outcome: Outcome, fault: str | None) -> Outcome:
    """Return the outcome in view of what is wrong with the output: a success fails, any other end stays what it was."""
    if fault is None or outcome.ending != "succeeded":
        return outcome
    return outcome.but(ending="failed", reason=Reason.of("output_rejected", fault))


def is_worth_another_try(error: GurneyError | OSError, tries: int) -> bool:
    """Tell whether what failed may succeed later."""
    if isinstance(error, GurneyError):
        doubtful = isinstance(error, IntegrityError | Internal | NotFound)
        return error.retryable or (doubtful and tries < DOUBTFUL_TRIES)
    return error.errno not in _LASTING


def is_final(error: GurneyError) -> bool:
    """Tell whether the scheduler's answer says that it knows better, so that asking again is in vain."""
    return isinstance(error, NotFound | Conflict | Forbidden) and not error.retryable


def fits(capacity: Amount, live: Iterable[StartRun], start: StartRun) -> bool:
    """Tell whether a start has room beside the live runs."""
    others = list(live)
    cpu = _sum(each.request.resources.cpu for each in (*others, start))
    memory = _sum(each.request.resources.memory for each in (*others, start))
    taken = {gpu for each in others for gpu in each.gpus}
    return cpu <= capacity.cpu + _ROUNDING and memory <= capacity.memory and taken.isdisjoint(start.gpus)


def kind_of(urn: str, kinds: Sequence[str]) -> str | None:
    """Return the kind, an URN's beginning, that the URN is of."""
    return next((kind for kind in kinds if urn.startswith(kind)), None)


def _sum(amounts: Iterable[float | None]) -> float:
    return sum(amount or 0 for amount in amounts)


def _reason(code: str, told: str, detail: str) -> Reason:
    return Reason.of(code, f"{told}: {detail}" if detail else told)
