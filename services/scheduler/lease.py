"""The scheduler's lease: who may take it, and for how long who has it may act. Pure.

The lease is a document. Taking it raises its epoch; renewing it changes its revision and nothing else. Clocks of two
hosts are never compared: a standby takes over when it has seen the same revision for a whole term by its own clock, and
the leader stops well before a term has passed since it began its last renewal, by its own.

What keeps two leaders apart is not the clock but the epoch: a take-over raises the epoch of every live placement by
compare-and-set, and whoever finds an epoch above its own does nothing more. The term is how long the others wait.
"""

from dataclasses import dataclass

from gurney.model.run import Leadership

#: The parts of a term after which the leader renews, and after which it stops where it could not.
RENEW_AFTER = 0.25
ACT_FOR = 0.7

LEADER = "scheduler"


@dataclass(frozen=True, slots=True)
class Sight:
    """What a standby saw: a revision, and since when, by its own clock."""

    revision: int
    since: float


def sighted(before: Sight | None, found: Leadership | None, now: float) -> Sight:
    """Return what is known after a look that ended at `now`."""
    revision = found.revision if found else 0
    return before if before and before.revision == revision else Sight(revision, now)


def is_free(found: Leadership | None, sight: Sight, asked: float, term: float) -> bool:
    """Tell whether the lease may be taken, after a look that began at `asked`."""
    return found is None or found.released or asked - sight.since >= term


def taken(found: Leadership | None, holder: str, process: str, heard: int = 0) -> Leadership:
    """Return the lease in new hands. `heard`: an epoch that agents know of; documents may have been put back since."""
    if found is None:
        return Leadership(id=LEADER, epoch=heard + 1, holder=holder, process=process)
    return found.next(epoch=max(found.epoch, heard) + 1, holder=holder, process=process, released=False)


def is_held(found: Leadership, mine: Leadership) -> bool:
    """Tell whether what was found is still the holder's own lease, renewed or not."""
    return (found.epoch, found.holder, found.released) == (mine.epoch, mine.holder, False)


def renewed(found: Leadership, mine: Leadership) -> Leadership | None:
    """Return the holder's lease renewed; None where it is not the holder's any more."""
    return found.next() if is_held(found, mine) else None


def given_up(found: Leadership, mine: Leadership) -> Leadership | None:
    """Return the lease free for anybody; None where it is not the holder's any more."""
    return found.next(released=True) if is_held(found, mine) else None


def acts_until(asked: float, term: float) -> float:
    """Return until when a leader acts whose last renewal began at `asked`."""
    return asked + ACT_FOR * term
