"""The states of a placement, and the one place that changes them. Pure.

reserved -> placed -> confirmed -> ended; what was not confirmed yet can be canceled, which is an end too. The first end
that is recorded stays. Each function returns the placement's next revision, or None where there is nothing to change.
"""

from datetime import datetime

from gurney.ids import run_id
from gurney.model.base import Reason
from gurney.model.job import PlacementRequest, Priority
from gurney.model.resources import Resources
from gurney.model.run import Admit, Outcome, Placement, PlacementState
from services.scheduler.plan import Decision

RESERVED, PLACED, CONFIRMED = PlacementState.RESERVED, PlacementState.PLACED, PlacementState.CONFIRMED
ENDED, CANCELED = PlacementState.ENDED, PlacementState.CANCELED

TRANSITIONS: dict[PlacementState, frozenset[PlacementState]] = {
    RESERVED: frozenset({PLACED, CANCELED}),
    PLACED: frozenset({CONFIRMED, ENDED, CANCELED}),
    CONFIRMED: frozenset({ENDED}),
    ENDED: frozenset(),
    CANCELED: frozenset(),
}


def reserved(question: Admit, decision: Decision, epoch: int) -> Placement:
    """Return the placement that holds room for a job which is being accepted."""
    return _new(decision, epoch).but(state=RESERVED, project=question.project, told={})


def placed(decision: Decision, epoch: int) -> Placement:
    """Return the placement of a job."""
    return _new(decision, epoch)


def _new(decision: Decision, epoch: int) -> Placement:
    request = decision.entry.request
    return Placement(
        id=decision.run_id,
        job_id=request.job_id,
        attempt=request.attempt,
        project=request.project,
        priority=request.priority,
        state=PLACED,
        node=decision.node,
        resources=request.request.resources,
        gpus=decision.gpus,
        gpu_share=decision.share,
        epoch=epoch,
        request=request.request,
        requested_at=request.requested_at,
        placed_at=max(decision.at, request.requested_at),
        told={"scheduled": 1},
    )


def never_placed(job_id: str, attempt: int, outcome: Outcome, epoch: int, now: datetime) -> Placement:
    """Return the placement of an attempt that ended before it had one: no later placement can win."""
    return Placement(
        id=run_id(job_id, attempt),
        job_id=job_id,
        attempt=attempt,
        project="",
        priority=Priority.NORMAL,
        state=CANCELED if outcome.ending == "canceled" else ENDED,
        node=None,
        resources=Resources(),
        epoch=epoch,
        request=None,
        requested_at=now,
        placed_at=now,
        ended_at=now,
        outcome=outcome,
        told={outcome.ending: 1},
    )


def taken_up(placement: Placement, request: PlacementRequest, now: datetime) -> Placement | None:
    """Make a reservation the placement of its job."""
    if placement.state is not RESERVED:
        return None
    at = max(now, request.requested_at)
    return _to(placement, PLACED, "scheduled").but(
        project=request.project, requested_at=request.requested_at, placed_at=at
    )


def refusal(placement: Placement, node: str, asked_epoch: int, epoch: int) -> str | None:
    """Return why a node may not start this run; None: it may.

    A start of an older leadership is good as long as the placement was taken over: what it says is the same.
    """
    if placement.epoch != epoch or asked_epoch > epoch:
        return f"the placement is of epoch {placement.epoch}, the start of {asked_epoch}; this is {epoch}"
    if placement.node != node:
        return f"the run was placed on {placement.node}"
    if placement.state in {PLACED, CONFIRMED}:
        return None
    return f"the placement is {placement.state}"


def confirmed(placement: Placement, node: str, asked_epoch: int, epoch: int, now: datetime) -> Placement | None:
    """Let the node start the run."""
    if placement.state is not PLACED or refusal(placement, node, asked_epoch, epoch):
        return None
    return _to(placement, CONFIRMED).but(confirmed_at=max(now, placement.placed_at))


def started(placement: Placement, at: datetime) -> Placement | None:
    """Stamp that the command has started."""
    if placement.state is not CONFIRMED or placement.started_at:
        return None
    revision = placement.revision + 1
    return placement.next(
        started_at=max(at, placement.confirmed_at or placement.placed_at),
        told={**placement.told, "started": revision},
    )


def ended(
    placement: Placement, node: str, outcome: Outcome, now: datetime, running_since: datetime | None = None
) -> Placement | None:
    """Record the end that a node tells; a start that nobody recorded yet comes with it."""
    if placement.state not in {PLACED, CONFIRMED} or placement.node != node:
        return None
    begun = running_since or outcome.started_at
    if placement.state is CONFIRMED and placement.started_at is None and begun:
        at = min(max(begun, placement.confirmed_at or placement.placed_at), max(now, placement.placed_at))
        # told as of the revision before: nothing else was, and the end comes after it
        placement = placement.but(started_at=at, told={**placement.told, "started": placement.revision})
    return _over(placement, ENDED, outcome, now)


def canceled(placement: Placement, outcome: Outcome, now: datetime) -> Placement | None:
    """Cancel what was not confirmed; of a confirmed run, note that it shall stop."""
    match placement.state:
        case PlacementState.RESERVED | PlacementState.PLACED:
            return _over(placement, CANCELED, outcome, now)
        case PlacementState.CONFIRMED if placement.cancel_requested_at is None:
            return placement.next(cancel_requested_at=now)
        case _:
            return None


def led(placement: Placement, epoch: int) -> Placement | None:
    """Take a placement of an older leadership over."""
    return placement.next(epoch=epoch) if placement.live and placement.epoch < epoch else None


def cancel_outcome() -> Outcome:
    """Return the outcome of what is canceled before it ran."""
    return Outcome(ending="canceled", reason=Reason.of("canceled", "it was canceled before it had started"))


def _over(placement: Placement, state: PlacementState, outcome: Outcome, now: datetime) -> Placement:
    at = max(now, placement.started_at or placement.confirmed_at or placement.placed_at)
    return _to(placement, state, outcome.ending).but(ended_at=at, outcome=outcome)


def _to(placement: Placement, state: PlacementState, *told: str) -> Placement:
    if state not in TRANSITIONS[placement.state]:
        raise ValueError(f"a placement cannot go from {placement.state} to {state}")
    revision = placement.revision + 1
    return placement.next(state=state, told={**placement.told, **dict.fromkeys(told, revision)})
