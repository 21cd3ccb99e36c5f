"""Outcomes, second tries and room: what the agent decides without doing anything."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gurney import errors
from gurney.errors import GurneyError
from gurney.model.base import Reason
from gurney.model.job import RunRequest, Timings, Usage
from gurney.model.resources import Amount, Resources
from gurney.model.run import StartRun
from gurney.runtime.port import Cause, End
from gurney.settings import MIB
from services.agent import policy

TIMINGS = Timings(pulling=1.0, staging=2.0)


def end(cause: Cause, exit_code: int | None = None, message: str = "") -> End:
    """Return an end after three seconds."""
    return End(cause, exit_code, None, None, 3.0, peak_memory=5, message=message)


@pytest.mark.parametrize(
    ("found", "ending", "reason"),
    [
        (end(Cause.EXITED, 0), "succeeded", None),
        (end(Cause.EXITED, 1), "failed", "exit_nonzero"),
        (end(Cause.EXITED, 127), "failed", "exit_nonzero"),
        (end(Cause.EXITED, 137), "failed", "exit_nonzero"),
        (end(Cause.EXITED, None), "failed", "exit_nonzero"),
        (end(Cause.MEMORY, 137), "failed", "oom_killed"),
        (end(Cause.TIMEOUT, 143), "failed", "timeout"),
        (end(Cause.STOPPED, 143), "canceled", "canceled"),
        (end(Cause.LEASE), "lost", "node_lost"),
        (end(Cause.LOST), "lost", "node_lost"),
        (end(Cause.NOT_STARTED), "lost", "internal"),
    ],
)
def test_every_cause_has_its_outcome(found: End, ending: str, reason: str | None) -> None:
    """What ended a run decides how the attempt ends, with exit code, times and peak."""
    outcome = policy.outcome_of(found, TIMINGS)
    assert (outcome.ending, outcome.reason.code if outcome.reason else None) == (ending, reason)
    assert outcome.exit_code == found.exit_code
    assert outcome.timings == Timings(pulling=1.0, staging=2.0, running=3.0)
    assert outcome.usage == Usage(peak_memory=5, wall_s=3.0)


@pytest.mark.parametrize("cause", list(Cause))
def test_what_the_runtime_says_is_told(cause: Cause) -> None:
    """The runtime's own words stand in the reason, cut to what a reason may have."""
    reason = policy.outcome_of(end(cause, 1, "because" * 1000), TIMINGS).reason
    assert reason is not None
    assert "because" in reason.message
    assert len(reason.message) <= 2048


@pytest.mark.parametrize("cause", list(Cause))
@pytest.mark.parametrize("exit_code", [0, 1])
def test_full_disk_is_no_success(cause: Cause, exit_code: int) -> None:
    """Where the disk was full at the end a success is lost, a failure says so, and any other end stays what it was."""
    before = policy.outcome_of(end(cause, exit_code), TIMINGS)
    after = policy.on_full_disk(before)
    if before.ending == "succeeded":
        assert (after.ending, after.reason and after.reason.code) == ("lost", "output_unavailable")
    else:
        assert after.but(reason=None) == before.but(reason=None)
        assert after.reason is not None
        assert after.reason.code == (before.reason and before.reason.code)
    if before.ending in {"succeeded", "failed"}:
        assert after.reason is not None
        assert "disk" in after.reason.message
    else:
        assert after == before


@pytest.mark.parametrize(("cause", "exit_code"), [(Cause.EXITED, 0), (Cause.EXITED, 3), *((c, 137) for c in Cause)])
def test_a_failure_without_its_gpu_is_the_hosts(cause: Cause, exit_code: int) -> None:
    """Where nothing can run on a run's GPU a failure is lost, and so is what we have ended; any other end stays."""
    before = policy.outcome_of(end(cause, exit_code), TIMINGS)
    back_again = policy.on_unfit_gpus(before, {})
    assert back_again.ending == ("lost" if cause is Cause.STOPPED else before.ending)
    after = policy.on_unfit_gpus(before, {"GPU-1": "lost"})
    if before.ending in {"failed", "canceled"}:
        assert before.reason is not None
        assert after.reason is not None
        assert (after.ending, after.reason.code) == ("lost", "gpu_lost")
        assert after.reason.message == f"nothing can run on GPU-1 (lost): {before.reason.message}"
    else:
        assert after == before


@pytest.mark.parametrize(("cause", "exit_code"), [(Cause.EXITED, 0), (Cause.EXITED, 3), *((c, 137) for c in Cause)])
def test_a_run_that_was_ended_for_its_gpu_memory_has_failed(cause: Cause, exit_code: int) -> None:
    """What we have stopped for the GPU memory that it held failed by it; any other end stays."""
    before = policy.outcome_of(end(cause, exit_code), TIMINGS)
    after = policy.on_excess(before, policy.told_excess(start(0, 0, ("GPU-1",), 1000), 1500 * MIB))
    if cause is Cause.STOPPED:
        assert (after.ending, after.reason) == (
            "failed",
            Reason(code="gpu_memory_exceeded", message="it held 1500 MiB of GPU-1, of which it had 1000 MiB"),
        )
        assert after.usage == before.usage
    else:
        assert after == before


@pytest.mark.parametrize("cause", list(Cause))
def test_nothing_of_the_data_is_told_of_a_transient_run(cause: Cause) -> None:
    """Its end keeps code and exit code; what the application wrote, and the names of its files, stay behind."""
    outcome = policy.declared(policy.outcome_of(end(cause, 3), TIMINGS), "PATIENT")
    told = [
        outcome,
        policy.declared(outcome.but(ending="succeeded", reason=None), "PATIENT"),
        policy.rejected(outcome.but(ending="succeeded", reason=None), "PATIENT.dcm is a link"),
        policy.unstored(outcome, "PATIENT.dcm"),
        policy.lost("input_unavailable", "PATIENT.dcm", TIMINGS),
    ]
    for each in told:
        full = each.but(metadata={"PATIENT": 1}, log_tail=("PATIENT",))
        bare = policy.without_data(full)
        assert "PATIENT" not in bare.model_dump_json()
        assert bare.ending == each.ending
        assert (bare.reason and bare.reason.code) == (each.reason and each.reason.code)


@pytest.mark.parametrize("cause", list(Cause))
def test_an_exception_that_the_application_tells_is_no_success(cause: Cause) -> None:
    """Its metadata says why it failed, also where it ended with 0; a run that somebody ended has its own reason."""
    before = policy.outcome_of(end(cause, 0), TIMINGS)
    text = "no lungs found"
    after = policy.declared(before, text)
    if before.ending == "succeeded":
        assert (after.ending, after.reason and (after.reason.code, after.reason.message)) == (
            "failed",
            ("exception", text),
        )
    elif before.ending == "failed":
        assert after.reason is not None
        assert after.reason.code == (before.reason and before.reason.code)
        assert text in after.reason.message
    else:
        assert after == before
    for nothing in (None, ""):
        assert policy.declared(before, nothing) == before


@pytest.mark.parametrize("cause", list(Cause))
def test_only_a_success_can_be_rejected(cause: Cause) -> None:
    """Output that must not be fails a success, and hides no other reason."""
    outcome = policy.outcome_of(end(cause, 0), TIMINGS)
    assert policy.rejected(outcome, None) == outcome
    after = policy.rejected(outcome, "x: a link")
    if outcome.ending == "succeeded":
        assert after.reason is not None
        assert (after.ending, after.reason.code, after.exit_code) == ("failed", "output_rejected", 0)
    else:
        assert after == outcome


@pytest.mark.parametrize(
    ("cause", "ending", "reason"),
    [
        (Cause.EXITED, "lost", "output_unavailable"),
        (Cause.TIMEOUT, "lost", "output_unavailable"),
        (Cause.STOPPED, "canceled", "canceled"),
        (Cause.LOST, "lost", "node_lost"),
    ],
)
def test_output_that_cannot_be_stored_loses_the_attempt(cause: Cause, ending: str, reason: str) -> None:
    """A result that cannot be stored loses the attempt, but a canceled one stays canceled."""
    outcome = policy.unstored(policy.outcome_of(end(cause, 0), TIMINGS), "no room")
    assert outcome.reason is not None
    assert (outcome.ending, outcome.reason.code) == (ending, reason)


@pytest.mark.parametrize(
    ("error", "first", "later"),
    [
        (errors.StoreUnavailable(), True, True),
        (errors.NatsUnavailable(), True, True),
        (errors.ImageUnavailable(), True, True),
        (errors.IntegrityError(), True, False),
        (errors.NotFound(), True, False),
        (errors.Internal(), True, False),
        (errors.Forbidden(), False, False),
        (errors.JobTerminal(), False, False),
        (OSError(errno.ENOSPC, "full"), True, True),
        (OSError(errno.EIO, "broken"), True, True),
        (TimeoutError(), True, True),
        (NotADirectoryError(errno.ENOTDIR, "no"), False, False),
        (OSError(errno.ENAMETOOLONG, "long"), False, False),
    ],
)
def test_faults_are_tried_again_while_that_may_help(
    error: GurneyError | OSError,
    first: bool,  # noqa: FBT001
    later: bool,  # noqa: FBT001
) -> None:
    """What time may heal is tried again, what looks lasting a few times, what is lasting never."""
    assert policy.is_worth_another_try(error, 1) is first
    assert policy.is_worth_another_try(error, 100) is later


def test_the_scheduler_has_the_last_word() -> None:
    """An answer that says the scheduler knows better is final; one that says it cannot answer now is not."""
    assert policy.is_final(errors.NotFound())
    assert policy.is_final(errors.Conflict())
    assert not policy.is_final(errors.RevisionConflict())
    assert not policy.is_final(errors.NatsUnavailable())
    assert not policy.is_final(errors.Internal())


def start(cpu: float | None, memory: int | None, gpus: tuple[str, ...] = (), share: int = 0) -> StartRun:
    """Return a start that asks for so much."""
    request = RunRequest(
        urn="urn:x",
        digest="d",
        generation="monai",
        command=("x",),
        input_path="i",
        output_path="o",
        payload="p",
        resources=Resources(cpu=cpu, memory=memory),
    )
    return StartRun(
        run_id="r", job_id="j", attempt=1, node="n", epoch=1, gpus=gpus, gpu_share=share, request=request, token="t"
    )


GPUS = {"a": 1000 * MIB + 1, "b": 1000 * MIB}
amounts = st.lists(st.tuples(st.sampled_from([0.01, 0.1, 0.5, 1.0]), st.integers(0, 100)), max_size=40)


@given(amounts)
def test_what_fits_together_is_never_refused(asked: list[tuple[float, int]]) -> None:
    """Starts that use a node up to the last share fit in any order, and nothing above that does."""
    starts = [start(cpu, memory) for cpu, memory in asked]
    cpu = round(sum(cpu for cpu, _ in asked), 6)
    capacity = Amount(cpu=cpu, memory=sum(memory for _, memory in asked))
    for number, each in enumerate(starts):
        assert policy.fits(capacity, {}, starts[:number], each)
    assert not policy.fits(capacity, {}, starts, start(0.01, None))
    assert not policy.fits(capacity, {}, starts, start(None, 1))
    assert policy.fits(capacity, {}, starts, start(None, None))


def test_a_gpu_is_given_once() -> None:
    """A GPU that a live run has for itself is not given to another, nor one that is shared to a run for itself."""
    whole, other, both = (start(0, 0, gpus) for gpus in (("a",), ("b",), ("b", "a")))
    share = start(0, 0, ("a",), 1)
    assert policy.fits(Amount(), GPUS, [whole], other)
    for live, more in ((whole, both), (whole, whole), (whole, share), (share, whole), (share, both)):
        assert not policy.fits(Amount(), GPUS, [live], more)


def test_shares_of_a_gpu_fit_together() -> None:
    """Runs that share a GPU have no more of it together than there is; of one that is not known nobody can say."""
    live = [start(0, 0, ("a",), 600), start(0, 0, ("b",), 1000)]
    assert policy.fits(Amount(), GPUS, live, start(0, 0, ("a",), 400))
    assert not policy.fits(Amount(), GPUS, live, start(0, 0, ("a",), 401))
    assert policy.fits(Amount(), {}, live, start(0, 0, ("a",), 401))


def test_a_urn_is_of_the_kind_that_it_begins_with() -> None:
    """The runtime is picked by the beginning of the URN."""
    kinds = ("urn:oci:", "urn:gurney:dir:")
    assert policy.kind_of("urn:gurney:dir:x", kinds) == "urn:gurney:dir:"
    assert policy.kind_of("urn:other:x", kinds) is None


@given(st.lists(st.tuples(st.integers(1, 5), st.frozensets(st.sampled_from("abc"))), min_size=1, max_size=12))
def test_a_copy_goes_when_it_was_idle_at_every_look_for_long(looks: list[tuple[int, frozenset[str]]]) -> None:
    """What was needed, or was not there, at any look since one that is long ago stays; all else goes."""
    long, now, since = 7, 0, dict[str, float]()
    seen: list[tuple[int, frozenset[str]]] = []
    for later, idle in looks:
        now += later
        seen.append((now, idle))
        since = policy.idle_since(idle, since, now)
        long_ago = [number for number, (at, _) in enumerate(seen) if at <= now - long]
        expected = frozenset.intersection(*(each for _, each in seen[long_ago[-1] :])) if long_ago else frozenset()
        assert set(policy.long_idle(since, now - long)) == expected
