"""What can happen to a job (events), and what follows from it besides the document's next revision (effects). Pure."""

from dataclasses import dataclass
from datetime import datetime
from typing import TypedDict, assert_never

from gurney.model.base import Reason
from gurney.model.job import GpuLimit, Phase
from gurney.model.run import Lifecycle, Outcome

# --- events -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """Told by the scheduler of one attempt. `revision` is the placement's, 0 where no placement says it."""

    at: datetime
    attempt: int
    revision: int = 0
    #: Id of the message.
    cause: str | None = None
    node: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting(Told):
    """No room yet; `reason` is the first of the scheduler's."""

    reason: Reason | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress(Told):
    phase: Phase | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheduled(Told):
    """A node was chosen."""

    gpu_limit: GpuLimit | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Started(Told):
    """The run's command has started."""

    gpu_limit: GpuLimit | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended(Told):
    """The attempt is over."""

    outcome: Outcome | None = None
    reason: Reason | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Succeeded(Ended):
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed(Ended):
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Canceled(Ended):
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost(Ended):
    """Nobody knows how the run ended, only that it is no more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Asked by a client."""

    #: Trace id of the request.
    cause: str | None = None
    #: The client's subject.
    by: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CancelRequested(Asked):
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Finalize(Asked):
    """The input is not needed any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Delete(Asked):
    """The job is not needed any more."""


Ending = Succeeded | Failed | Canceled | Lost
Request = CancelRequested | Finalize | Delete
Event = Waiting | Progress | Scheduled | Started | Ending | Request


def told(message: Lifecycle) -> Event:  # noqa: PLR0911  # one for each event
    """Return the event that a message of the scheduler stands for."""
    common: _Common = {
        "at": message.at,
        "attempt": message.attempt,
        "revision": message.revision,
        "cause": message.event_id,
        "node": message.node,
    }
    outcome, reason = message.outcome, message.reason
    match message.event:
        case "waiting":
            return Waiting(**common, reason=reason)
        case "progress":
            return Progress(**common, phase=message.phase)
        case "scheduled":
            return Scheduled(**common, gpu_limit=message.gpu_limit)
        case "started":
            return Started(**common, gpu_limit=message.gpu_limit)
        case "succeeded":
            return Succeeded(**common, outcome=outcome, reason=reason)
        case "failed":
            return Failed(**common, outcome=outcome, reason=reason)
        case "canceled":
            return Canceled(**common, outcome=outcome, reason=reason)
        case "lost":
            return Lost(**common, outcome=outcome, reason=reason)
        case _:
            assert_never(message.event)


class _Common(TypedDict):
    at: datetime
    attempt: int
    revision: int
    cause: str
    node: str | None


# --- effects ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class EndPayloads:
    """Before the write: end the hold on the input, and bind the output of this attempt if `keep`."""

    keep: bool
    partial: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Announce:
    """With the write: `job.<event>` about `attempt`."""

    event: str
    attempt: int
    at: datetime
    #: Code of a reason that the document does not keep.
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TellScheduler:
    """With the write: `cancel.<job_id>`."""

    attempt: int
    at: datetime


Effect = EndPayloads | Announce | TellScheduler
