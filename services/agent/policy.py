"""What the agent decides without doing anything: outcomes, whether to try again, whether a start fits. Pure."""

import errno
from collections.abc import Iterable, Mapping, Sequence

from gurney.errors import Conflict, Forbidden, GurneyError, IntegrityError, Internal, NotFound
from gurney.model.base import Reason
from gurney.model.job import Timings, Usage
from gurney.model.resources import Amount
from gurney.model.run import Ending, Heartbeat, Outcome, StartRun
from gurney.runtime.port import Cause, End
from gurney.settings import MIB
from services.agent.gpu_use import NOTHING, Used

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


#: How a cause that is not an exit code ends a run, by which reason, and in which words.
_ENDINGS: dict[Cause, tuple[Ending, str, str]] = {
    Cause.MEMORY: ("failed", "oom_killed", "the application went past its memory"),
    Cause.TIMEOUT: ("failed", "timeout", "the application took longer than it may"),
    Cause.STOPPED: ("canceled", "canceled", "the run was stopped"),
    Cause.LEASE: ("lost", "node_lost", "the node's lease lapsed"),
    Cause.LOST: ("lost", "node_lost", "the host cut the run off"),
    # A command that cannot be executed has an exit code; this is a fault of the host.
    Cause.NOT_STARTED: ("lost", "internal", "the run could not be begun"),
}


#: What is said of these endings where nothing may be told of the application's data.
_DISCREET: Mapping[str, str] = {
    **{code: told for ending, code, told in _ENDINGS.values() if ending == "failed"},
    "exception": "the application says that it has failed",
    "output_rejected": "the output has what results may not have, or too much",
    "input_unavailable": "the input cannot be had",
    "output_unavailable": "the output cannot be stored, or may lack something",
}


def outcome_of(end: End, timings: Timings, gpus: Used = NOTHING) -> Outcome:
    """Return how a run ended that the runtime has begun, or could not begin; `gpus`: what it used of them."""
    ending, reason = _ending_of(end)
    return Outcome(
        ending=ending,
        reason=reason,
        exit_code=end.exit_code,
        started_at=end.started_at,
        stopped_at=end.stopped_at,
        timings=timings.but(running=end.duration_s),
        usage=Usage(
            cpu_s=end.cpu_s,
            peak_memory=end.peak_memory,
            wall_s=end.duration_s,
            gpu_peak_memory=gpus.memory,
            gpu_utilization=gpus.busy,
        ),
    )


def _ending_of(end: End) -> tuple[Ending, Reason | None]:
    if end.cause is not Cause.EXITED:
        ending, code, told = _ENDINGS[end.cause]
        return ending, _reason(code, told, end.message)
    if end.exit_code == 0:
        return "succeeded", None
    return "failed", _reason("exit_nonzero", _told_exit(end.exit_code), end.message)


def _told_exit(code: int | None) -> str:
    return f"the application ended with exit code {code}"


def canceled(timings: Timings) -> Outcome:
    """Return the outcome of a run that was stopped before it began."""
    reason = Reason.of("canceled", "the run was stopped before it began")
    return Outcome(ending="canceled", reason=reason, timings=timings)


def lost(code: str, message: str, timings: Timings) -> Outcome:
    """Return the outcome of an attempt that the infrastructure failed."""
    return Outcome(ending="lost", reason=Reason.of(code, message), timings=timings)


def declared(outcome: Outcome, told: str | None) -> Outcome:
    """Return the outcome in view of what the application says of itself: with an exception it has failed.

    Some applications catch their own failure, write it down and end with 0: that is no success.
    """
    if not told:
        return outcome
    if outcome.ending == "succeeded":
        return outcome.but(ending="failed", reason=Reason.of("exception", told))
    if outcome.ending == "failed" and outcome.reason is not None:
        return outcome.but(reason=_reason(outcome.reason.code, outcome.reason.message, told))
    return outcome


def rejected(outcome: Outcome, fault: str | None) -> Outcome:
    """Return the outcome in view of what is wrong with the output: a success fails, any other end stays what it was."""
    if fault is None or outcome.ending != "succeeded":
        return outcome
    return outcome.but(ending="failed", reason=Reason.of("output_rejected", fault))


def on_full_disk(outcome: Outcome) -> Outcome:
    """Return the outcome of a run whose host's disk was full at its end: what it wrote may lack something.

    An exit code of 0 tells nothing then, as many an application does not look whether all was written.
    """
    told = "the disk of its host was full when the application ended, or before"
    match outcome.ending:
        case "succeeded":
            reason = Reason.of("output_unavailable", f"{told}: what it wrote may lack something")
            return outcome.but(ending="lost", reason=reason)
        case "failed" if outcome.reason is not None:
            return outcome.but(reason=Reason.of(outcome.reason.code, f"{outcome.reason.message}; {told}"))
        case _:
            return outcome


def without_gpus(unfit: Mapping[str, str], timings: Timings) -> Outcome:
    """Return the outcome of a run that was not begun, for want of its GPUs."""
    return lost("gpu_lost", _told(unfit), timings)


def on_unfit_gpus(outcome: Outcome, unfit: Mapping[str, str], *, was_refused: bool = False) -> Outcome:
    """Return the outcome of a run that nobody stopped, in view of its GPUs on which nothing can run any more.

    A failure is not its own then, and one that was ended was so by us, for want of them. `was_refused`: they are well,
    but its container could not open them any more.
    """
    if outcome.ending not in {"failed", "canceled"}:
        return outcome
    why = f": {outcome.reason.message}" if outcome.reason else ""
    if unfit:
        told = _told(unfit) + why
    elif was_refused:
        told = "its container could not open the devices of its GPUs any more" + why
    elif outcome.ending == "canceled":
        told = "it was ended while one of its GPUs was gone"
    else:
        return outcome
    return outcome.but(ending="lost", reason=Reason.of("gpu_lost", told))


def on_excess(outcome: Outcome, excess: str) -> Outcome:
    """Return the outcome of a run that nobody but we stopped, for the GPU memory that it held: that is its failure.

    One that had come to its own end by then keeps it.
    """
    if outcome.ending != "canceled":
        return outcome
    return outcome.but(ending="failed", reason=Reason.of("gpu_memory_exceeded", excess))


def told_excess(start: StartRun, held: int) -> str:
    """Say what a run held of its GPU, in bytes, and what it had."""
    return f"it held {held // MIB} MiB of {start.gpus[0]}, of which it had {start.gpu_share} MiB"


def unstored(outcome: Outcome, fault: str) -> Outcome:
    """Return the outcome of a run whose output could not be stored: a cancel stays a cancel."""
    outcome = outcome.but(metadata=None)
    if outcome.ending in {"canceled", "lost"}:
        return outcome
    return outcome.but(ending="lost", reason=Reason.of("output_unavailable", f"the output cannot be stored: {fault}"))


def without_data(outcome: Outcome) -> Outcome:
    """Return the outcome with nothing in it that the application wrote, or that tells of its files."""
    reason = outcome.reason
    if reason is not None and reason.code == "exit_nonzero":
        reason = Reason.of(reason.code, _told_exit(outcome.exit_code))
    elif reason is not None:
        reason = Reason.of(reason.code, _DISCREET.get(reason.code, reason.message))
    return outcome.but(reason=reason, metadata=None, log=None, log_tail=())


def is_worth_another_try(error: GurneyError | OSError, tries: int) -> bool:
    """Tell whether what failed may succeed later."""
    if isinstance(error, GurneyError):
        doubtful = isinstance(error, IntegrityError | Internal | NotFound)
        return error.retryable or (doubtful and tries < DOUBTFUL_TRIES)
    return error.errno not in _LASTING


def is_final(error: GurneyError) -> bool:
    """Tell whether the scheduler's answer says that it knows better, so that asking again is in vain."""
    return isinstance(error, NotFound | Conflict | Forbidden) and not error.retryable


def fits(capacity: Amount, gpus: Mapping[str, int], live: Iterable[StartRun], start: StartRun) -> bool:
    """Tell whether a start has room beside the live runs; `gpus`: the bytes of each GPU that is known."""
    others = list(live)
    cpu = _sum(each.request.resources.cpu for each in (*others, start))
    memory = _sum(each.request.resources.memory for each in (*others, start))
    has_gpus = all(_has_room(gpu, gpus.get(gpu), others, start) for gpu in start.gpus)
    return cpu <= capacity.cpu + _ROUNDING and memory <= capacity.memory and has_gpus


def _has_room(gpu: str, memory: int | None, live: Iterable[StartRun], start: StartRun) -> bool:
    """Tell whether a GPU has room for a start: nobody else where it is to be its own, else all shares together."""
    shares = [each.gpu_share for each in (*live, start) if gpu in each.gpus]
    if not all(shares):
        return len(shares) == 1
    return memory is None or sum(shares) <= memory // MIB


def may_claim(found: Heartbeat | None, home: str, incarnation: str, *, has_beaten: bool) -> bool:
    """Tell whether an agent may write its node's key over what lies there.

    Its own heartbeats always; those of its former life until it has beaten itself: from then on they are of a twin.
    """
    if found is None or found.incarnation == incarnation:
        return True
    return found.home == home and not has_beaten


def idle_since(idle: Iterable[str], before: Mapping[str, float], now: float) -> dict[str, float]:
    """Return since when copies are idle; `before`: what this was at the last look. One that was needed begins anew."""
    return {digest: before.get(digest, now) for digest in idle}


def long_idle(idle: Mapping[str, float], since: float) -> list[str]:
    """Return the copies that have been idle since then, or longer."""
    return [digest for digest, began in idle.items() if began <= since]


def kind_of(urn: str, kinds: Sequence[str]) -> str | None:
    """Return the kind, an URN's beginning, that the URN is of."""
    return next((kind for kind in kinds if urn.startswith(kind)), None)


def _sum(amounts: Iterable[float | None]) -> float:
    return sum(amount or 0 for amount in amounts)


def _told(unfit: Mapping[str, str]) -> str:
    return "nothing can run on " + ", ".join(f"{uuid} ({health})" for uuid, health in unfit.items())


def _reason(code: str, told: str, detail: str) -> Reason:
    return Reason.of(code, f"{told}: {detail}" if detail else told)
