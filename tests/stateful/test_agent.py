"""A run on a node whose agent may be killed between any two steps, and whose scheduler may decide otherwise.

The states are few, so every one that can be reached is looked at, not some of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from services.agent import machine
from services.agent.machine import Event, Kept, Seen, Step


@dataclass(frozen=True)
class World:
    """One run: what survives a kill (journal, runtime, scheduler), and what the agent knows, which does not."""

    kept: Kept | None = None
    seen: Seen = Seen.ABSENT
    granted: bool = False
    fenced: bool = False
    reported: bool = False
    starts: int = 0
    #: The agent's memory. None: it does not know the run.
    step: Step | None = None
    stopped: bool = False
    alive: bool = True

    def nexts(self) -> Iterator["World"]:
        """Yield every world that may follow."""
        if self.seen is Seen.LIVE:
            yield replace(self, seen=Seen.ENDED)
        if not self.granted and not self.fenced:
            yield replace(self, fenced=True)
        if not self.alive:
            yield self.restarted()
            return
        yield self.killed()
        if self.step is None:
            # The start comes, for the first time or again.
            yield replace(self, kept=Kept.ACCEPTED, step=Step.CONFIRMING)
        elif self.step is Step.DONE:
            yield self.forgotten().killed()
            yield replace(self.forgotten(), seen=Seen.ABSENT)
        else:
            if self.step in machine.HOLDS_ROOM and not self.stopped:
                yield replace(self, stopped=True, kept=Kept.STOPPED)
            for world, event in self.works(self.step):
                yield world.killed()  # when the work is done, and before the agent knows
                yield replace(world, step=machine.after(self.step, event))

    def killed(self) -> "World":
        return replace(self, alive=False, step=None, stopped=False)

    def restarted(self) -> "World":
        """Return what the next agent makes of it."""
        if self.kept is None:  # what the runtime has is a stray
            return replace(self, alive=True, seen=Seen.ABSENT)
        step = machine.RESUME[self.kept, self.seen]
        return replace(self, alive=True, step=step, stopped=self.kept is Kept.STOPPED)

    def forgotten(self) -> "World":
        """Return the world in which the journal has forgotten, and the runtime has not yet."""
        return replace(self, kept=None, step=None, stopped=False)

    def works(self, step: Step) -> Iterator[tuple["World", Event]]:  # noqa: C901  one case a step
        """Yield all that a step may come to."""
        decided = replace(self, kept=Kept.DECIDED)
        if self.stopped and step in machine.BEFORE_START:
            yield decided, Event.STOPPED
            return
        match step:
            case Step.CONFIRMING if self.reported or (self.fenced and not self.granted):
                yield self, Event.REFUSED
            case Step.CONFIRMING:
                yield replace(self, granted=True), Event.GRANTED
            case Step.STAGING:
                yield self, Event.STAGED
                yield decided, Event.GIVEN_UP
            case Step.STARTING if self.seen is Seen.ABSENT:
                yield replace(self, seen=Seen.LIVE, starts=self.starts + 1), Event.BEGUN
            case Step.STARTING:
                yield self, Event.BEGUN
            case Step.RUNNING if self.seen is Seen.ENDED:
                yield self, Event.ENDED
            case Step.RUNNING:
                pass
            case Step.COLLECTING:
                yield decided, Event.COLLECTED
                yield self, Event.COLLECTED  # there was nothing to carry home, so nothing is written
            case Step.REPORTING:
                yield replace(self, reported=True), Event.ANSWERED
            case Step.DONE:
                raise AssertionError

    def in_peace(self) -> "World":
        """Return where it ends when nothing more happens to it."""
        world = self if self.alive else self.restarted()
        for _ in range(20):
            if world.seen is Seen.LIVE:
                world = replace(world, seen=Seen.ENDED)
            if world.step is Step.DONE:
                world = replace(world.forgotten(), seen=Seen.ABSENT)
            elif world.step is not None:
                worked, event = next(world.works(world.step))
                world = replace(worked, step=machine.after(world.step, event))
        return world


@cache
def reached() -> frozenset[World]:
    """Return every world that can be reached from an empty node."""
    found = {World()}
    new = [World()]
    while new:
        following = {world for each in new for world in each.nexts() if world.starts < 3} - found
        found |= following
        new = list(following)
    return frozenset(found)


def test_all_that_matters_is_reached() -> None:
    """The worlds looked at have every step, and every pair of journal and runtime after a kill that can be."""
    worlds = reached()
    assert {world.step for world in worlds} == {None, *Step}
    after_kills = {(world.kept, world.seen) for world in worlds if not world.alive}
    impossible = {(Kept.DECIDED, Seen.LIVE), (None, Seen.LIVE)}  # the latter takes a power cut
    assert after_kills == {(kept, seen) for kept in (None, *Kept) for seen in Seen} - impossible


def test_no_run_starts_twice() -> None:
    """Whatever is killed when, no run is started twice, and none that was never confirmed."""
    assert not [world for world in reached() if world.starts > 1]
    assert not [world for world in reached() if world.starts and not world.granted]


def test_nothing_is_forgotten_untold() -> None:
    """What was confirmed is not forgotten before the scheduler knows how it ended."""
    assert not [world for world in reached() if world.kept is None and world.granted and not world.reported]


def test_an_agent_knows_its_runs() -> None:
    """An agent that lives knows every run that its journal has, and no other."""
    assert not [world for world in reached() if world.alive and (world.step is None) != (world.kept is None)]


def test_in_peace_every_run_ends() -> None:
    """From every world a run that is left in peace is reported, unless it was never confirmed, and leaves nothing."""
    for world in reached():
        end = world.in_peace()
        assert (end.step, end.kept, end.seen) == (None, None, Seen.ABSENT), world
        assert end.reported or not end.granted, world
        assert end.starts <= 1, world
