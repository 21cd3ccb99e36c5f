"""Jobs, and what the scheduler tells of them, for the tests of the job service."""

from datetime import UTC, datetime, timedelta
from typing import Any

from gurney.model.access import Caller, Role
from gurney.model.base import Reason
from gurney.model.job import Admission, Job, JobState, MapRef, RunRequest, Timings
from gurney.model.map import Description, Map, MapState
from gurney.model.resources import Resources
from gurney.model.run import Outcome
from services.job import machine

T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
JOB_ID = "job_01k00000000000000000000000"
PAYLOAD_ID = "pay_01k00000000000000000000000"
MAP_ID = "map_01k00000000000000000000000"
RESOURCES = Resources(cpu=1.0, memory=1024**3)
CALLER = Caller(token="tok", subject="ann", role=Role.DEVELOPER)
OTHER = Caller(token="tok2", subject="bob", role=Role.CLINICIAN)


def after(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def a_request() -> RunRequest:
    return RunRequest(
        urn="urn:gurney:dir:sample",
        digest="sha256:00",
        generation="monai",
        command=("true",),
        input_path="/in",
        output_path="/out",
        payload=PAYLOAD_ID,
        resources=RESOURCES,
    )


def a_job(**changes: Any) -> Job:
    """Return a job as it is first stored, with these changes."""
    job = Job(
        id=JOB_ID,
        created_by="ann",
        created_at=T0,
        map=MapRef(id=MAP_ID, name="sample", urn="urn:gurney:dir:sample", digest="sha256:00"),
        payload=PAYLOAD_ID,
        state=JobState.REQUESTED,
        resources=RESOURCES,
        admission=Admission.QUEUE,
        request=a_request(),
    )
    stored, _ = machine.begin(job, None)
    return stored.but(**changes)


def a_map(**changes: Any) -> Map:
    """Return a MAP that is ready, with these changes."""
    return Map(
        id=MAP_ID,
        created_at=T0,
        name="sample",
        urn="urn:gurney:dir:sample",
        digest="sha256:00",
        state=MapState.READY,
        description=Description(
            generation="monai",
            command=("python", "app.py"),
            environment={"A": "1"},
            input_path="/in",
            output_path="/out",
            resources=Resources(cpu=2.0),
        ),
    ).but(**changes)


def an_outcome(ending: Any = "succeeded", code: str | None = None, **changes: Any) -> Outcome:
    """Return how a run ended, with output and timings."""
    reason = Reason(code=code, message="because") if code else None
    return Outcome(
        ending=ending, reason=reason, exit_code=0, timings=Timings(pulling=1.0, running=2.0), output=True
    ).but(**changes)
