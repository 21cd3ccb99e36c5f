"""The scheduler's lease as a machine: two schedulers with clocks of their own, frozen between any two of their lines.

Each step of a scheduler (to ask, to write, to hear the answer) comes alone, so that time may pass and others may act in
between; writes get lost, and so do their answers.
"""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gurney.model.run import Leadership
from services.scheduler import lease, machine
from services.scheduler.lease import Sight
from tests.core.scheduler_builders import NOW, a_placement

TERM = 10.0
#: What clocks may differ while they run: three hundredths are far more than real ones do.
TRUE_RATES = st.floats(0.97, 1.03)
ANY_RATES = st.floats(0.1, 10.0)
WHO = st.integers(0, 1)
WANTS = st.sampled_from(("renew", "renew", "act", "act", "let go"))
FATES = st.sampled_from(("kept", "kept", "kept", "kept", "lost", "answer lost"))


@dataclass
class Scheduler:
    """What one process remembers. Times are of its own clock."""

    offset: float
    rate: float
    sight: Sight | None = None
    #: A look that is under way: when it began, and what it has read.
    looked: tuple[float, Leadership | None] | None = None
    #: A write of the lease that is under way: when its caller began, what is expected, what is written.
    writing: tuple[float, int, Leadership] | None = None
    #: When the write began whose answer is on its way, and what was written.
    written: tuple[float, Leadership] | None = None
    mine: Leadership | None = None
    until: float = -1e9
    #: A change of the placement that was decided, and not written yet: at which revision.
    deciding: int | None = None


class Leasing(RuleBasedStateMachine):
    """`rates`: how fast clocks may run."""

    rates = TRUE_RATES

    def __init__(self) -> None:
        super().__init__()
        self.real = 0.0
        self.lease: Leadership | None = None
        self.placement = a_placement()
        #: The epoch of each change of the placement, in order.
        self.writers: list[int] = []
        self.winners: list[int] = []
        self.schedulers: list[Scheduler] = []
        self.taken = 0

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.schedulers = [
            Scheduler(offset=data.draw(st.floats(-1e6, 1e6)), rate=data.draw(type(self).rates)) for _ in range(2)
        ]

    def clock(self, who: Scheduler) -> float:
        return who.offset + who.rate * self.real

    def leads(self, who: Scheduler) -> bool:
        return who.mine is not None and self.clock(who) < who.until

    # --- what happens ---

    @rule(seconds=st.sampled_from((0.1, 3.0, 5.1, 10.0)))
    def time_passes(self, seconds: float) -> None:
        self.real += seconds

    @rule(who=WHO, lines=st.sampled_from((1, 2, 4)), fate=FATES, wants=WANTS)
    def one_goes_on(self, who: int, lines: int, fate: str, wants: str) -> None:
        """Do the next lines of one scheduler; then it may be frozen, and the other goes on."""
        for _ in range(lines):
            self.next_line(self.schedulers[who], fate, wants)

    def next_line(self, one: Scheduler, fate: str, wants: str) -> None:
        if one.written is not None:
            self.hear_the_answer(one)
        elif one.writing is not None:
            self.write(one, fate)
        elif one.deciding is not None:
            self.change(one)
        elif one.looked is not None:
            self.hear_what_is_there(one)
        elif one.mine is None:
            one.looked = (self.clock(one), self.lease)
        elif not self.leads(one):
            one.mine, one.sight = None, None
        else:
            {"renew": self.renew, "act": self.decide, "let go": self.let_go}[wants](one)

    def hear_what_is_there(self, one: Scheduler) -> None:
        """Hear what a look has found, and want the lease where that is free."""
        if one.looked is None:
            return
        (asked, found), one.looked = one.looked, None
        one.sight = lease.sighted(one.sight, found, self.clock(one))
        if lease.is_free(found, one.sight, asked, TERM):
            self.taken += 1
            new = lease.taken(found, f"{self.taken}", "")
            one.writing = (self.clock(one), found.revision if found else 0, new)

    def renew(self, one: Scheduler) -> None:
        if one.mine is None or self.lease is None:
            return
        after = lease.renewed(self.lease, one.mine)
        if after is None:
            one.mine = None
        else:
            one.writing = (self.clock(one), self.lease.revision, after)

    def let_go(self, one: Scheduler) -> None:
        """Act no more from here on, whatever becomes of the write."""
        if one.mine is None or self.lease is None:
            return
        after = lease.given_up(self.lease, one.mine)
        one.mine = one.sight = None
        if after:
            one.writing = (self.clock(one), self.lease.revision, after)

    def write(self, one: Scheduler, fate: str) -> None:
        """A write of the lease arrives, or does not."""
        if one.writing is None:
            return
        (asked, expected, new), one.writing = one.writing, None
        if fate == "lost" or expected != (self.lease.revision if self.lease else 0):
            return
        if self.lease is None or new.holder != self.lease.holder:
            self.winners.append(new.epoch)
        self.lease = new
        if fate == "kept":
            one.written = (asked, new)

    def hear_the_answer(self, one: Scheduler) -> None:
        """Act from the moment on at which the write was asked for, not from now."""
        if one.written is None:
            return
        (asked, new), one.written = one.written, None
        if new.released:
            return
        if one.mine is None:
            one.mine, one.until = new, lease.acts_until(asked, TERM)
            if self.leads(one):
                self.take_over(new.epoch)
        one.until = max(one.until, lease.acts_until(asked, TERM))

    def take_over(self, epoch: int) -> None:
        """Bring the placement to the epoch, as a leader does before it acts."""
        if after := machine.led(self.placement, epoch):
            self.placement = after
            self.writers.append(epoch)

    def decide(self, one: Scheduler) -> None:
        """Read the placement and decide; the write comes later, maybe much later."""
        if one.mine is None:
            return
        if self.placement.epoch > one.mine.epoch:
            one.mine = None
        else:
            one.deciding = self.placement.revision

    def change(self, one: Scheduler) -> None:
        expected, one.deciding = one.deciding, None
        if one.mine is not None and expected == self.placement.revision:
            self.placement = self.placement.next(started_at=NOW)
            self.writers.append(one.mine.epoch)

    # --- what is always true ---

    @invariant()
    def no_epoch_is_won_twice(self) -> None:
        assert self.winners == sorted(set(self.winners))

    @invariant()
    def nothing_that_a_former_leader_does_counts(self) -> None:
        """Once a placement is taken over, only newer epochs change it."""
        assert self.writers == sorted(self.writers)


class LeasingByTrueClocks(Leasing):
    """With clocks that run alike, no two ever act at once."""

    @invariant()
    def at_most_one_leads(self) -> None:
        assert sum(self.leads(each) for each in self.schedulers) <= 1


class LeasingByAnyClocks(Leasing):
    """However wrong clocks are, epochs keep the writes apart."""

    rates = ANY_RATES


#: It takes many lines until one leads, is frozen, and another has taken over.
LONG = settings(stateful_step_count=80)
TestLeasingByTrueClocks = LeasingByTrueClocks.TestCase
TestLeasingByTrueClocks.settings = LONG
TestLeasingByAnyClocks = LeasingByAnyClocks.TestCase
TestLeasingByAnyClocks.settings = LONG
