"""What becomes of a job, event by event."""

from dataclasses import replace
from datetime import timedelta
from itertools import product
from typing import Any, get_args

import pytest

from gurney.errors import JobLive, JobTerminal
from gurney.model.base import Reason
from gurney.model.job import TERMINAL, Folded, Job, JobState, LogInfo, Phase
from gurney.model.run import Lifecycle, Outcome
from services.job import events, life, machine
from services.job.events import (
    Announce,
    Canceled,
    CancelRequested,
    Delete,
    EndPayloads,
    Event,
    Failed,
    Finalize,
    Lost,
    Progress,
    Scheduled,
    Started,
    Succeeded,
    TellScheduler,
    Waiting,
)
from services.job.machine import TRANSITIONS, Decision, IllegalEvent
from tests.job_builders import a_job, after, an_outcome

KINDS: tuple[type[Event], ...] = tuple(
    leaf for each in get_args(Event) for leaf in (get_args(each) or (each,)) if isinstance(leaf, type)
)


def decide(job: Job, event: Event, at: float = 100) -> Decision:
    return machine.decide(job, event, after(at), attempts=3)


def folded(job: Job, *told: Event) -> Job:
    for event in told:
        job, _ = decide(job, event)
    return job


def scheduled(at: float = 1, attempt: int = 1, revision: int = 1, node: str = "n1") -> Scheduled:
    return Scheduled(at=after(at), attempt=attempt, revision=revision, cause=f"s{attempt}", node=node)


def started(at: float = 2, attempt: int = 1) -> Started:
    return Started(at=after(at), attempt=attempt, revision=3, cause=f"r{attempt}", node="n1")


def succeeded(at: float = 10, attempt: int = 1, outcome: Outcome | None = None) -> Succeeded:
    return Succeeded(at=after(at), attempt=attempt, revision=4, cause="e", node="n1", outcome=outcome or an_outcome())


def failed(code: str, at: float = 10, attempt: int = 1) -> Failed:
    outcome = an_outcome("failed", code, exit_code=7)
    return Failed(at=after(at), attempt=attempt, revision=4, cause="e", node="n1", outcome=outcome)


def lost(at: float = 10, attempt: int = 1) -> Lost:
    return Lost(at=after(at), attempt=attempt, revision=4, cause="l", node="n1")


def an_event(kind: type[Event]) -> Event:
    if issubclass(kind, events.Told):
        extra: dict[str, Any] = {"phase": Phase(name="staging")} if kind is Progress else {}
        return kind(at=after(5), attempt=1, revision=9, cause="c", node="n1", **extra)
    return kind(cause="c", by="ann")


def in_state(state: JobState) -> Job:
    stopped = after(9) if state in TERMINAL else None
    return a_job(state=state, scheduled_at=after(1), started_at=after(2), stopped_at=stopped, node="n1")


@pytest.mark.parametrize(("state", "kind"), list(product(JobState, KINDS)))
def test_the_table_says_what_every_event_does_in_every_state(state: JobState, kind: type[Event]) -> None:
    """An event leads to a state that the table allows, or is refused and changes nothing."""
    job = in_state(state)
    before = job.model_dump()
    if (state, kind) not in TRANSITIONS:
        with pytest.raises((JobLive, JobTerminal, IllegalEvent)):
            decide(job, an_event(kind))
        assert job.model_dump() == before
        return
    result, _ = decide(job, an_event(kind))
    assert result.state in (TRANSITIONS[state, kind] or (state,))
    assert state not in TERMINAL or result.state is state


def test_the_table_prints() -> None:
    """Every transition is a row of text, once."""
    rows = machine.table()
    assert len(rows) == len(set(rows)) == len(TRANSITIONS)
    assert ("requested", "Scheduled", "scheduled") in rows


def test_a_job_begins_with_its_first_attempt_requested() -> None:
    """A new job announces `requested` and tells it in its story."""
    job, effects = machine.begin(a_job(story=()), "trace")
    assert [(item.event, item.attempt, item.cause) for item in job.story] == [("requested", 1, "trace")]
    assert effects == (Announce(event="requested", attempt=1, at=job.created_at),)


def test_the_straight_way() -> None:
    """Scheduled, started and succeeded lead to the end with stamps, node, timings and the announcements in order."""
    job = a_job()
    told = []
    for event in (scheduled(), started(), succeeded()):
        job, effects = decide(job, event)
        told += [effect.event for effect in effects if isinstance(effect, Announce)]
    assert told == ["scheduled", "started", "succeeded"]
    assert (job.scheduled_at, job.started_at, job.stopped_at) == (after(1), after(2), after(10))
    assert (job.state, job.node, job.exit_code, job.phase, job.reason) == (JobState.SUCCEEDED, "n1", 0, None, None)
    assert (job.timings.queued, job.timings.pulling, job.timings.running, job.timings.other) == (1.0, 1.0, 2.0, 6.0)
    assert [(item.event, item.node, item.cause) for item in job.story] == [
        ("requested", None, None),
        ("scheduled", "n1", "s1"),
        ("started", "n1", "r1"),
        ("succeeded", "n1", "e"),
    ]


def test_a_job_tells_what_keeps_it_within_its_gpu_memory() -> None:
    """It is told with the node, whichever message comes first, and holds for that attempt only."""
    watched, walled = (replace(scheduled(), gpu_limit=limit) for limit in ("watched", "walled"))
    assert folded(a_job(), watched, started()).gpu_limit == "watched"
    assert folded(a_job(), replace(started(), gpu_limit="walled"), scheduled()).gpu_limit == "walled"
    job = folded(a_job(), watched, lost())
    assert (job.state, job.gpu_limit) == (JobState.REQUESTED, None)
    assert folded(job, replace(walled, attempt=2)).gpu_limit == "walled"


def test_output_of_a_success_is_bound() -> None:
    """A success with files binds them; one without has nothing to bind."""
    _, effects = decide(a_job(), succeeded())
    assert effects[0] == EndPayloads(keep=True, partial=False)
    _, effects = decide(a_job(), succeeded(outcome=an_outcome(output=False)))
    assert effects[0] == EndPayloads(keep=False, partial=False)


def test_output_of_a_final_failure_is_partial() -> None:
    """A final failure binds what there is, marked partial, and tells reason and exit code."""
    job, effects = decide(a_job(), failed("exit_nonzero"))
    assert effects[0] == EndPayloads(keep=True, partial=True)
    assert (job.state, job.exit_code, job.reason) == (
        JobState.FAILED,
        7,
        Reason(code="exit_nonzero", message="because"),
    )


def test_output_of_a_canceled_run_is_not_kept() -> None:
    """A canceled run ends the hold on the input and keeps its log, not its output."""
    outcome = an_outcome("canceled", log=LogInfo(attempt=1, bytes=3, sha256="00"), log_tail=("bye",))
    job, effects = decide(a_job(), Canceled(at=after(3), attempt=1, revision=2, outcome=outcome))
    assert effects[0] == EndPayloads(keep=False)
    assert (job.state, job.reason, len(job.logs), job.log_tail) == (
        JobState.CANCELED,
        Reason(code="canceled"),
        1,
        ("bye",),
    )


def test_a_lost_attempt_is_tried_again() -> None:
    """A lost attempt gives `retrying` of n and `requested` of n + 1, and its node is avoided."""
    job, effects = decide(folded(a_job(), scheduled(), started()), lost())
    assert [(each.event, each.attempt) for each in effects if isinstance(each, Announce)] == [
        ("retrying", 1),
        ("requested", 2),
    ]
    assert not [each for each in effects if isinstance(each, EndPayloads)]
    assert (job.state, job.attempt, job.avoid, job.requested_at) == (JobState.REQUESTED, 2, ("n1",), after(10))
    assert (job.scheduled_at, job.started_at, job.stopped_at, job.node) == (None, None, None, None)


def test_the_third_loss_is_final() -> None:
    """With three attempts, the third that is lost ends the job."""
    job = folded(a_job(), lost(1), lost(2, attempt=2), lost(3, attempt=3))
    assert (job.state, job.attempt, job.reason) == (JobState.FAILED, 3, Reason(code="node_lost"))


def test_timings_add_up_over_attempts() -> None:
    """Each attempt's waiting and phases count, and `other` is the rest of the wall time."""
    first = folded(a_job(), scheduled(1), failed("internal", 10))
    job = folded(first, scheduled(15, attempt=2), succeeded(20, attempt=2))
    assert (job.timings.queued, job.timings.running, job.timings.pulling) == (6.0, 4.0, 2.0)
    assert job.timings.other == 20 - 6 - 4 - 2


def test_a_cancel_tells_the_scheduler_once() -> None:
    """The first cancel stamps the job and tells the scheduler; the second changes nothing."""
    job, effects = decide(a_job(), CancelRequested(by="ann"), 5)
    assert effects == (TellScheduler(attempt=1, at=after(5)),)
    assert (job.cancel_requested_at, job.state) == (after(5), JobState.REQUESTED)
    assert decide(job, CancelRequested(by="ann"), 6) == (job, ())


def test_no_retry_follows_a_cancel() -> None:
    """An attempt that would be tried again ends as canceled when a cancel was asked for."""
    job, effects = decide(folded(a_job(), CancelRequested()), lost())
    assert (job.state, job.attempt, job.reason and job.reason.code) == (JobState.CANCELED, 1, "canceled")
    assert effects[0] == EndPayloads(keep=False)


@pytest.mark.parametrize("event", [succeeded(), failed("exit_nonzero")])
def test_an_end_that_was_recorded_first_stays(event: Succeeded | Failed) -> None:
    """A success or a final failure stays what it is although a cancel was asked for."""
    job = folded(a_job(), CancelRequested(), event)
    assert job.state.value == type(event).__name__.lower()


def test_canceling_an_ended_job_is_told() -> None:
    """A job that ended otherwise cannot be canceled; one that is canceled is answered as it is."""
    with pytest.raises(JobTerminal):
        decide(folded(a_job(), succeeded()), CancelRequested())
    canceled = folded(a_job(), Canceled(at=after(1), attempt=1, revision=1))
    assert decide(canceled, CancelRequested()) == (canceled, ())


def test_finalize_happens_once() -> None:
    """Finalize stamps an ended job once; the second time changes nothing; a live job is refused."""
    ended = folded(a_job(), succeeded())
    job, effects = decide(ended, Finalize(), 50)
    assert (job.finalized_at, job.owes, effects) == (
        after(50),
        "finalize",
        (Announce(event="finalized", attempt=1, at=after(50)),),
    )
    assert decide(job, Finalize(), 60) == (job, ())
    with pytest.raises(JobLive):
        decide(a_job(), Finalize())


def test_the_data_of_a_transient_job_go_when_nobody_gets_them() -> None:
    """Of a success they stay until it is finalized; any other end lets them go, and binds no output."""
    job = a_job(transient=True, awaited_until=after(30))
    ended = folded(job, succeeded(outcome=an_outcome(output=True)))
    assert (ended.owes, ended.finalized_at, ended.awaited_until) == (None, None, after(30))
    done, _ = decide(ended, Finalize(), 50)
    assert (done.owes, done.finalized_at, done.awaited_until) == ("discard", after(50), None)
    failing = Failed(at=after(10), attempt=1, outcome=an_outcome("failed", reason=Reason(code="timeout"), output=True))
    for event in (failing, Canceled(at=after(10), attempt=1)):
        over, effects = decide(job, event)
        assert (over.owes, over.finalized_at, over.awaited_until) == ("discard", after(10), None)
        assert effects[0] == EndPayloads(keep=False)
        assert effects[-1] == Announce(event="finalized", attempt=1, at=after(10))
        assert decide(over, Finalize(), 60) == (over, ())


def test_delete_marks_an_ended_job() -> None:
    """Delete hides an ended job and owes the payload service its claims; a live job is refused."""
    job, effects = decide(folded(a_job(), succeeded()), Delete())
    assert (job.deleting, job.owes, effects) == (True, "drop", ())
    assert decide(folded(job, Delete()), Finalize(), 50)[0].owes == "drop"
    with pytest.raises(JobLive):
        decide(a_job(), Delete())


def test_an_older_event_fills_a_missing_stamp_and_no_more() -> None:
    """A late `scheduled` gives the time between its neighbours, without an announcement, in its place in the story."""
    job = folded(a_job(), started(5), succeeded(9))
    assert job.scheduled_at is None
    late, effects = decide(job, scheduled(7))
    assert (late.scheduled_at, late.state, effects) == (after(5), JobState.SUCCEEDED, ())
    assert decide(late, scheduled(3)) == (late, ())
    ats = [item.at for item in late.story]
    assert ats == sorted(ats)


def test_an_event_of_an_attempt_that_is_over_changes_nothing() -> None:
    """What comes late of attempt 1 does not touch attempt 2."""
    job = folded(a_job(), scheduled(), lost())
    for event in (scheduled(), started(), succeeded(), lost()):
        assert decide(job, event) == (job, ())


def test_an_attempt_that_was_never_asked_for_is_illegal() -> None:
    """An event of an attempt to come is refused, and the error tells the story so far."""
    with pytest.raises(IllegalEvent, match=r"requested\(1\)"):
        decide(a_job(), succeeded(attempt=2))


def test_a_second_end_changes_nothing() -> None:
    """The first end of an attempt is the job's."""
    job = folded(a_job(), succeeded())
    assert decide(job, failed("exit_nonzero")) == (job, ())


def test_time_never_goes_back() -> None:
    """An event that claims to be earlier than the one before is stamped as late as that one."""
    job = folded(a_job(), scheduled(5), started(2), succeeded(-3))
    assert (job.scheduled_at, job.started_at, job.stopped_at) == (after(5), after(5), after(5))


def test_a_start_that_no_message_told_is_taken_from_the_outcome() -> None:
    """The outcome's start stands where `started` is missing, between schedule and end."""
    job = folded(a_job(), scheduled(5), succeeded(9, outcome=an_outcome(started_at=after(20))))
    assert job.started_at == after(9)


def test_a_start_is_told_once_whichever_message_comes_first() -> None:
    """An end that overtakes its start tells of both, also where the job is tried again; the late start is no news."""
    for end in (succeeded(9), lost()):
        told = replace(end, outcome=an_outcome(started_at=after(6)))
        job, effects = decide(folded(a_job(), scheduled(5)), told)
        assert next(each.event for each in effects if isinstance(each, Announce)) == "started"
        late, more = decide(job, started(6))
        assert [item.event for item in late.story].count("started") == 1
        assert not more


def test_a_job_that_never_got_a_node_was_queued_to_its_end() -> None:
    """The whole life of an infeasible job is waiting, and no retries change that."""
    job, _ = decide(a_job(retries=5), Failed(at=after(8), attempt=1, revision=1, reason=Reason(code="infeasible")))
    assert (job.state, job.timings.queued, job.timings.other) == (JobState.FAILED, 8.0, 0.0)


def test_phases_only_go_on() -> None:
    """Progress shows later phases and growing counts; what is older, or repeated, is dropped."""

    def progress(phase: Phase) -> Progress:
        return Progress(at=after(3), attempt=1, cause="p", phase=phase)

    job = folded(a_job(), scheduled(), progress(Phase(name="staging", done=3, total=9)))
    assert decide(job, progress(Phase(name="pulling"))) == (job, ())
    assert decide(job, progress(Phase(name="staging", done=2, total=9))) == (job, ())
    onward, effects = decide(job, progress(Phase(name="staging", done=4, total=9)))
    assert [each.event for each in effects if isinstance(each, Announce)] == ["progress"]
    assert onward.phase == Phase(name="staging", done=4, total=9)
    assert onward.story == job.story, "counts alone are no story"
    assert folded(onward, started()).phase == Phase(name="running")


def test_waiting_is_told_once_for_each_message() -> None:
    """A reason to wait is announced with its code, and not again when the message comes again."""
    event = Waiting(at=after(3), attempt=1, cause="w", reason=Reason(code="cpu_short", message="no core"))
    job, effects = decide(a_job(), event)
    assert effects == (Announce(event="waiting", attempt=1, at=after(3), reason="cpu_short"),)
    assert job.story[-1].message == "cpu_short: no core"
    assert decide(job, event) == (job, ())
    assert decide(folded(job, scheduled()), event)[1] == ()


def test_a_second_placement_of_an_attempt_moves_its_node() -> None:
    """A newer revision that names another node is folded without a second announcement."""
    job, effects = decide(folded(a_job(), scheduled()), scheduled(3, revision=2, node="n2"))
    assert (job.node, job.state, job.scheduled_at, effects) == ("n2", JobState.SCHEDULED, after(1), ())
    assert job.folded == Folded(attempt=1, revision=2)


def test_the_story_is_bounded() -> None:
    """A story keeps its last 500 items."""
    job = a_job()
    for number in range(600):
        job = life.told(job, f"e{number}", after(number), 1)
    assert (len(job.story), job.story[-1].event) == (500, "e599")


@pytest.mark.parametrize("name", get_args(Lifecycle.model_fields["event"].annotation))
def test_every_message_of_the_scheduler_is_an_event(name: str) -> None:
    """Each lifecycle event has its class, which takes over attempt, time, cause and node."""
    message = Lifecycle(event=name, event_id="x", job_id="j", attempt=2, revision=5, at=after(1), node="n")
    event = events.told(message)
    assert type(event).__name__.lower() == name
    assert isinstance(event, events.Told)
    assert (event.attempt, event.at, event.cause, event.node) == (2, after(1), "x", "n")
    assert event.at - after(0) == timedelta(seconds=1)
