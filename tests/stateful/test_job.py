"""A job under a scheduler whose messages come late, twice and in any order."""

from collections import Counter
from typing import Any, Literal

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gurney import ids
from gurney.errors import JobLive, JobTerminal
from gurney.model.base import Reason
from gurney.model.job import TERMINAL, Job, JobState, Phase
from gurney.model.run import Lifecycle
from services.job import machine
from services.job.effects import event_data
from services.job.events import (
    Announce,
    CancelRequested,
    Delete,
    Effect,
    EndPayloads,
    Finalize,
    TellScheduler,
    told,
)
from tests.job_builders import a_job, after, an_outcome

ATTEMPTS = 3
End = Literal["succeeded", "failed", "canceled", "lost"]


class ScheduledJob(RuleBasedStateMachine):
    """The scheduler makes one placement for each `requested` it hears; the network does what it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.job, effects = machine.begin(a_job(story=(), retries=1), None)
        self.sent: list[Lifecycle] = []
        #: Attempt -> how far its placement is: 0 wanted, 1 placed, 2 started, 3 ended.
        self.placements: dict[int, int] = {}
        self.revision = 0
        self.clock = 0
        self.seen: list[Job] = [self.job]
        self.told: list[str] = []
        self.bound: list[int] = []
        self.cancels: list[TellScheduler] = []
        self._carry_out(effects)

    # --- the job service ---

    def _carry_out(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case Announce():
                    self.told.append(f"{event_data(self.job, effect).event_id}")
                    if effect.event == "requested":
                        self.placements[effect.attempt] = 0
                case EndPayloads():
                    self.bound.append(self.job.attempt)
                case TellScheduler():
                    self.cancels.append(effect)
        self.seen.append(self.job)

    def _decide(self, event: Any) -> None:
        self.job, effects = machine.decide(self.job, event, after(self.clock), attempts=ATTEMPTS)
        self._carry_out(effects)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """Any message that was ever sent comes, maybe again."""
        self._decide(told(data.draw(st.sampled_from(self.sent))))

    @rule()
    def cancel(self) -> None:
        try:
            self._decide(CancelRequested(by="ann"))
        except JobTerminal:
            assert self.job.state in {JobState.SUCCEEDED, JobState.FAILED}

    @rule(event=st.sampled_from([Finalize(), Delete()]))
    def put_away(self, event: Finalize | Delete) -> None:
        try:
            self._decide(event)
        except JobLive:
            assert self.job.state not in TERMINAL

    # --- the scheduler ---

    def _send(self, event: Any, attempt: int, revision: int, at: int, **more: Any) -> None:
        self.sent.append(
            Lifecycle(
                event=event,
                event_id=f"m{len(self.sent)}",
                job_id=self.job.id,
                attempt=attempt,
                revision=revision,
                at=after(at),
                node=f"n{attempt}",
                **more,
            )
        )

    def _next_revision(self) -> int:
        self.revision += 1
        self.clock += 1
        return self.revision

    @property
    def _current(self) -> int:
        return max(self.placements)

    @precondition(lambda self: self.placements[max(self.placements)] == 0)
    @rule(skew=st.integers(-5, 5))
    def place(self, skew: int) -> None:
        self.placements[self._current] = 1
        self._send("scheduled", self._current, self._next_revision(), self.clock + skew)

    @precondition(lambda self: self.placements[max(self.placements)] == 0)
    @rule()
    def wait(self) -> None:
        self._send("waiting", self._current, 0, self.clock, reason=Reason(code="cpu_short"))

    @precondition(lambda self: self.placements[max(self.placements)] == 1)
    @rule(skew=st.integers(-5, 5))
    def start(self, skew: int) -> None:
        self.placements[self._current] = 2
        self._send("started", self._current, self._next_revision(), self.clock + skew)

    @precondition(lambda self: self.placements[max(self.placements)] in {1, 2})
    @rule(name=st.sampled_from(["pulling", "staging", "running", "collecting"]), done=st.integers(0, 3))
    def progress(self, name: str, done: int) -> None:
        self._send("progress", self._current, 0, self.clock, phase=Phase(name=name, done=done))

    @precondition(lambda self: self.placements[max(self.placements)] < 3)
    @rule(
        end=st.sampled_from(["succeeded", "failed", "canceled", "lost"]),
        code=st.sampled_from(["internal", "exit_nonzero", "infeasible"]),
        skew=st.integers(-5, 5),
    )
    def end(self, end: End, code: str, skew: int) -> None:
        self.placements[self._current] = 3
        outcome = an_outcome(end, code if end == "failed" else None, started_at=after(self.clock))
        self._send(end, self._current, self._next_revision(), self.clock + skew, outcome=outcome)

    # --- what holds always ---

    @invariant()
    def terminal_states_are_final(self) -> None:
        """A job has at most one terminal state, told once, before which its payloads were settled once."""
        states = [job.state for job in self.seen if job.terminal]
        assert len(set(states)) <= 1
        assert all(job.terminal for job in self.seen[len(self.seen) - len(states) :])
        ends = [each for each in self.told if each.rpartition("-")[2] in TERMINAL]
        assert len(ends) == len(self.bound) == (1 if states else 0)

    @invariant()
    def every_event_is_told_once(self) -> None:
        derived = [each for each in self.told if each.count("-") == 2]
        assert not [each for each, count in Counter(derived).items() if count > 1]

    @invariant()
    def attempts_are_bounded_and_only_grow(self) -> None:
        attempts = [job.attempt for job in self.seen]
        assert attempts == sorted(attempts)
        assert self.job.attempt == self._current <= ATTEMPTS + self.job.retries

    @invariant()
    def time_goes_on(self) -> None:
        """Stamps follow each other, and one that is set within an attempt stays."""
        stamps = [
            self.job.created_at,
            self.job.requested_at,
            self.job.scheduled_at,
            self.job.started_at,
            self.job.stopped_at,
        ]
        known = [stamp for stamp in stamps if stamp]
        assert known == sorted(known)
        ats = [item.at for item in self.job.story if not item.event.startswith("cancel requested")]
        assert ats == sorted(ats)
        for before, now in zip(self.seen, self.seen[1:], strict=False):
            if before.attempt == now.attempt:
                for name in ("scheduled_at", "started_at", "stopped_at", "finalized_at", "cancel_requested_at"):
                    assert getattr(before, name) in {None, getattr(now, name)}

    @invariant()
    def no_attempt_follows_a_cancel(self) -> None:
        assert len(self.cancels) <= 1
        for cancel in self.cancels:
            assert self.job.attempt == cancel.attempt

    @invariant()
    def times_add_up(self) -> None:
        for name, seconds in self.job.timings:
            assert seconds is None or seconds >= 0, name
        if self.job.terminal:
            assert self.job.stopped_at
            assert self.job.timings.other is not None

    def teardown(self) -> None:
        """When every message has come, the job is where its last placement is."""
        for message in self.sent:
            self._decide(told(message))
        assert self.job.terminal == (self.placements[self._current] == 3)
        self.terminal_states_are_final()
        assert ids.split_run_id(ids.run_id(self.job.id, self.job.attempt)) == (self.job.id, self.job.attempt)


TestScheduledJob = ScheduledJob.TestCase
TestScheduledJob.__doc__ = "Whatever the order, a job has one end, one binding of results and times that go forward."
