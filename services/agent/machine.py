"""The steps of a run on its node, and where each run goes on after a restart. Pure; nowhere else is a step decided.

Disk knows little of it: that a run was accepted, that it shall stop, how it ended (`Kept`). The rest is asked again:
the scheduler confirms as often as it is asked, and the runtime starts a run once, however often it is told.
"""

from collections.abc import Iterator
from enum import StrEnum


class Step(StrEnum):
    """What a run is at now."""

    CONFIRMING = "confirming"  #: asks the scheduler whether it may start
    STAGING = "staging"  #: has the image and the input brought here
    STARTING = "starting"  #: has the runtime begin it
    RUNNING = "running"  #: waits for its end
    COLLECTING = "collecting"  #: carries output and log home
    REPORTING = "reporting"  #: tells the scheduler how it ended
    DONE = "done"  #: is forgotten


class Event(StrEnum):
    """What a step came to."""

    GRANTED = "granted"  #: it may start
    REFUSED = "refused"  #: it may not: somebody else decided about this attempt
    STAGED = "staged"
    GIVEN_UP = "given up"  #: image, input or runtime could not be had
    STOPPED = "stopped"  #: a stop came before the start
    BEGUN = "begun"
    ENDED = "ended"
    COLLECTED = "collected"  #: output and log are at home, or were given up
    ANSWERED = "answered"  #: the scheduler knows how it ended


TRANSITIONS: dict[tuple[Step, Event], Step] = {
    (Step.CONFIRMING, Event.GRANTED): Step.STAGING,
    (Step.CONFIRMING, Event.REFUSED): Step.DONE,
    (Step.CONFIRMING, Event.STOPPED): Step.REPORTING,
    (Step.STAGING, Event.STAGED): Step.STARTING,
    (Step.STAGING, Event.GIVEN_UP): Step.REPORTING,
    (Step.STAGING, Event.STOPPED): Step.REPORTING,
    (Step.STARTING, Event.BEGUN): Step.RUNNING,
    (Step.STARTING, Event.GIVEN_UP): Step.REPORTING,
    (Step.STARTING, Event.STOPPED): Step.REPORTING,
    (Step.RUNNING, Event.ENDED): Step.COLLECTING,
    (Step.COLLECTING, Event.COLLECTED): Step.REPORTING,
    (Step.REPORTING, Event.ANSWERED): Step.DONE,
}

#: A stop that comes at these steps breaks them off.
BREAKABLE = frozenset({Step.CONFIRMING, Step.STAGING})
#: A stop that comes before the end of these steps keeps the run from starting.
BEFORE_START = BREAKABLE | {Step.STARTING}
#: Steps at which a run needs its room on the node, or will.
HOLDS_ROOM = BEFORE_START | {Step.RUNNING}


def after(step: Step, event: Event) -> Step:
    """Return the next step; ValueError where the event cannot come at this one."""
    try:
        return TRANSITIONS[step, event]
    except KeyError:
        raise ValueError(f"a run that is {step} cannot be {event}") from None


class Kept(StrEnum):
    """What the journal knows of a run."""

    ACCEPTED = "accepted"  #: the start came
    STOPPED = "stopped"  #: the start and a stop came
    DECIDED = "decided"  #: how it ended is fixed, and what it made is at home


class Seen(StrEnum):
    """What the runtime knows of a run."""

    ABSENT = "absent"
    LIVE = "live"
    ENDED = "ended"


#: Where a run goes on after a restart. One that the journal does not know is stopped and forgotten.
RESUME: dict[tuple[Kept, Seen], Step] = {
    (Kept.ACCEPTED, Seen.ABSENT): Step.CONFIRMING,
    (Kept.ACCEPTED, Seen.LIVE): Step.RUNNING,
    (Kept.ACCEPTED, Seen.ENDED): Step.COLLECTING,
    (Kept.STOPPED, Seen.ABSENT): Step.CONFIRMING,  # the stop is found there, before anybody is asked
    (Kept.STOPPED, Seen.LIVE): Step.RUNNING,  # and is stopped once more
    (Kept.STOPPED, Seen.ENDED): Step.COLLECTING,
    (Kept.DECIDED, Seen.ABSENT): Step.REPORTING,
    (Kept.DECIDED, Seen.LIVE): Step.REPORTING,  # cannot be; forgetting it stops it first
    (Kept.DECIDED, Seen.ENDED): Step.REPORTING,
}


def tables() -> Iterator[str]:
    """Yield both tables as lines of text."""
    for (step, event), following in TRANSITIONS.items():
        yield f"{step} + {event} -> {following}"
    for (kept, seen), instruction in RESUME.items():
        yield f"journal: {kept}, runtime: {seen} -> {instruction}"
