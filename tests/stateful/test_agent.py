"""A run on a node whose agent may be killed between any two steps, and whose scheduler may decide otherwise."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.agent import machine
from services.agent.machine import Event, Kept, Seen, Step


class OneRun(RuleBasedStateMachine):
    """What survives a kill (journal, runtime, scheduler), and the agent's step, which does not."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Kept | None = None
        self.seen = Seen.ABSENT
        self.granted = False
        self.fenced = False
        self.reported = 0
        self.starts = 0
        #: The agent's memory; None: no agent, or nothing known.
        self.step: Step | None = None
        self.stopped = False
        self.alive = True

    # --- the world ---

    @precondition(lambda self: self.alive and self.step is None and self.kept is None)
    @rule()
    def told_to_start(self) -> None:
        """The start comes, for the first time or again."""
        self.kept, self.step, self.stopped = Kept.ACCEPTED, Step.CONFIRMING, False

    @precondition(lambda self: self.alive and self.step in machine.HOLDS_ROOM)
    @rule()
    def told_to_stop(self) -> None:
        """A stop comes and is journalled."""
        self.stopped = True
        if self.kept is Kept.ACCEPTED:
            self.kept = Kept.STOPPED

    @precondition(lambda self: not self.granted)
    @rule()
    def placed_elsewhere(self) -> None:
        """The scheduler decides otherwise before it has confirmed."""
        self.fenced = True

    @precondition(lambda self: self.seen is Seen.LIVE)
    @rule()
    def application_ends(self) -> None:
        """The application ends, whether an agent looks or not."""
        self.seen = Seen.ENDED

    @precondition(lambda self: self.alive)
    @rule()
    def killed(self) -> None:
        """The agent is killed."""
        self.alive, self.step, self.stopped = False, None, False

    @precondition(lambda self: not self.alive)
    @rule()
    def restarted(self) -> None:
        """An agent starts over the same folder."""
        self.alive = True
        if self.kept is not None:
            self.step = machine.RESUME[self.kept, self.seen]
            self.stopped = self.kept is Kept.STOPPED
        elif self.seen is not Seen.ABSENT:  # a stray
            self.seen = Seen.ABSENT

    # --- the agent ---

    @precondition(lambda self: self.alive and self.step not in {None, Step.DONE})
    @rule(fails=st.booleans(), dies=st.booleans())
    def works(self, *, fails: bool, dies: bool) -> None:
        """The agent does its step; it may die when the work is done and before it knows."""
        assert self.step is not None
        event = self._do(self.step, fails=fails)
        if event is None:
            return
        if dies:
            self.killed()
            return
        self.step = machine.after(self.step, event)

    def _do(self, step: Step, *, fails: bool) -> Event | None:  # noqa: PLR0911
        if self.stopped and step in machine.BEFORE_START:
            self.kept = Kept.DECIDED
            return Event.STOPPED
        match step:
            case Step.CONFIRMING:
                self.granted = self.granted or not self.fenced
                return Event.GRANTED if self.granted and not self.reported else Event.REFUSED
            case Step.STAGING:
                self.kept = Kept.DECIDED if fails else self.kept
                return Event.GIVEN_UP if fails else Event.STAGED
            case Step.STARTING:
                if self.seen is Seen.ABSENT:
                    self.seen = Seen.LIVE
                    self.starts += 1
                return Event.BEGUN
            case Step.RUNNING:
                return Event.ENDED if self.seen is Seen.ENDED else None
            case Step.COLLECTING:
                self.kept = Kept.DECIDED if not fails else self.kept  # `fails`: there was nothing to keep
                return Event.COLLECTED
            case Step.REPORTING:
                self.reported += 1
                return Event.ANSWERED
            case Step.DONE:
                raise AssertionError

    @precondition(lambda self: self.alive and self.step is Step.DONE)
    @rule(dies=st.booleans())
    def cleared_up(self, *, dies: bool) -> None:
        """The journal forgets first, the runtime after it."""
        self.kept = None
        self.step = None
        if dies:
            self.killed()
        else:
            self.seen = Seen.ABSENT

    # --- what holds ---

    @invariant()
    def started_once(self) -> None:
        """No run is started twice, and none that was never confirmed."""
        assert self.starts <= 1
        assert not self.starts or self.granted

    @invariant()
    def told(self) -> None:
        """What was confirmed is not forgotten before the scheduler knows how it ended."""
        assert self.kept is not None or not self.granted or self.reported

    @invariant()
    def known(self) -> None:
        """An agent that lives knows every run that it has in its journal."""
        assert not self.alive or (self.step is None) == (self.kept is None)

    def teardown(self) -> None:
        """Left in peace, every run comes to its end, and what was confirmed is reported."""
        taken = self.kept is not None
        if not self.alive:
            self.restarted()
        for _ in range(20):
            if self.seen is Seen.LIVE:
                self.application_ends()
            if self.step is Step.DONE:
                self.cleared_up(dies=False)
            elif self.step is not None:
                self.works(fails=False, dies=False)
        assert (self.step, self.kept, self.seen) == (None, None, Seen.ABSENT)
        assert not (taken and self.granted) or self.reported


TestOneRun = OneRun.TestCase
TestOneRun.__doc__ = "A run is started once and reported, whatever is killed when."
