"""Which failures are tried again, and what an outcome leaves in the document."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gurney.model.base import Reason
from gurney.model.job import LogInfo, Usage
from services.job import outcome, retry
from tests.job_builders import a_job, an_outcome

INFRASTRUCTURE = ["node_lost", "gpu_lost", "image_unavailable", "input_unavailable", "output_unavailable", "internal"]
APPLICATION = ["exit_nonzero", "oom_killed", "timeout", "output_rejected", "gpu_memory_exceeded"]


@pytest.mark.parametrize("code", INFRASTRUCTURE)
def test_the_infrastructure_is_tried_up_to_the_limit(code: str) -> None:
    """A fault of the infrastructure is tried again until the limit of attempts is reached, whatever the job asks."""
    assert retry.again(a_job(), code, 2)
    assert not retry.again(a_job(failures=(1, 0)), code, 2)
    assert not retry.again(a_job(), code, 1)


@pytest.mark.parametrize("code", APPLICATION)
def test_the_application_is_tried_as_often_as_the_job_asks(code: str) -> None:
    """A failure of the application is tried again only within the job's own retries."""
    assert not retry.again(a_job(), code, 3)
    assert retry.again(a_job(retries=1, failures=(2, 0)), code, 3)
    assert not retry.again(a_job(retries=1, failures=(0, 1)), code, 3)


@pytest.mark.parametrize("code", ["infeasible", "canceled"])
def test_some_ends_are_final(code: str) -> None:
    """What no node can hold, and what was canceled, is not tried again."""
    assert not retry.again(a_job(retries=10), code, 3)


@given(st.lists(st.sampled_from(INFRASTRUCTURE + APPLICATION)), st.integers(0, 4), st.integers(1, 4))
def test_attempts_are_bounded(codes: list[str], retries: int, attempts: int) -> None:
    """However a job fails, it is started at most attempts + retries times."""
    job = a_job(retries=retries)
    started = 1
    for code in codes:
        if not retry.again(job, code, attempts):
            break
        job = job.but(failures=retry.counted(job.failures, code))
        started += 1
    assert started <= attempts + retries


def test_free_fields_are_bounded() -> None:
    """Metadata too large for a document is left to the result files."""
    job = outcome.taken_over(a_job(), an_outcome(metadata={"x": "y" * 70_000}, usage=Usage(cpu_s=1)))
    assert (job.metadata, job.usage) == (None, Usage(cpu_s=1))


@given(st.lists(st.text(max_size=3000), max_size=150))
def test_the_log_tail_is_bounded(lines: list[str]) -> None:
    """The tail is the last lines of the log: at most 100, and 16 KiB."""
    kept = outcome.tail(tuple(lines))
    assert len(kept) <= 100
    assert sum(len(line.encode(errors="replace")) for line in kept) <= 16 * 1024
    assert list(kept) == lines[len(lines) - len(kept) :]


def test_each_attempt_has_one_log() -> None:
    """Logs are kept by attempt, and one that is told twice is there once."""
    job = a_job()
    for attempt in (1, 1, 2):
        job = outcome.taken_over(job, an_outcome(log=LogInfo(attempt=attempt, bytes=1, sha256="0")))
    assert [each.attempt for each in job.logs] == [1, 2]


def test_a_reason_is_always_there() -> None:
    """An end that gives no reason gets one; a long message is cut to 2 KiB."""
    assert outcome.reason_of("lost", None, None) == Reason(code="node_lost")
    assert outcome.reason_of("failed", an_outcome("failed"), Reason(code="timeout")) == Reason(code="timeout")
    long = an_outcome("failed", reason=Reason(code="internal", message="x" * 5000))
    assert len(outcome.reason_of("failed", long, None).message) == 2048
