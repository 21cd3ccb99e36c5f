"""What a client may ask of a job, and what is frozen."""

from typing import Any

import pytest
from pydantic import ValidationError

from gurney.errors import Invalid, MapNotReady
from gurney.model.job import Admission, CreateJob, Job, JobCreate
from gurney.model.map import MapState
from gurney.model.payload import Payload, PayloadState
from gurney.model.resources import AskedResources, Resources
from gurney.settings import Settings
from services.job import intake
from tests.job_builders import CALLER, JOB_ID, PAYLOAD_ID, T0, a_map

PAYLOAD = Payload(id=PAYLOAD_ID, created_at=T0, updated_at=T0, state=PayloadState.OPEN)


def body(**changes: Any) -> CreateJob:
    return CreateJob(**({"map": "sample", "payload": PAYLOAD_ID} | changes))


def new_job(settings: Settings | None = None, *, document: Any = None, **changes: Any) -> Job:
    question = JobCreate(caller=CALLER, body=body(**changes))
    settings = settings or Settings()
    return intake.new_job(JOB_ID, question, document or a_map(), PAYLOAD, settings=settings, now=T0)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("map", {"map": ""}),
        ("payload", {"payload": "a\0b"}),
        ("name", {"name": "line\nbreak"}),
        ("handlers", {"handlers": tuple(f"hdl_{n}" for n in range(101))}),
        ("resources.cpu", {"resources": AskedResources(cpu=0)}),
        ("resources.cpu", {"resources": AskedResources(cpu=-1)}),
        ("resources.cpu", {"resources": AskedResources(cpu=float("nan"))}),
        ("resources.cpu", {"resources": AskedResources(cpu=1e9)}),
        ("resources.memory", {"resources": AskedResources(memory=0)}),
        ("resources.memory", {"resources": AskedResources(memory=2**60)}),
        ("resources.shared_memory", {"resources": AskedResources(shared_memory=-1)}),
        ("resources.gpus", {"resources": AskedResources(gpus=-1)}),
        ("resources.gpu_memory", {"resources": AskedResources(gpu_memory=0)}),
        ("resources.gpu_share", {"resources": AskedResources(gpu_share=0)}),
        ("resources.gpu_model", {"resources": AskedResources(gpu_model="")}),
    ],
)
def test_a_fault_is_named(field: str, changes: dict[str, Any]) -> None:
    """A value that no job may have is refused by the name of its field."""
    with pytest.raises(Invalid) as caught:
        intake.check(body(**changes))
    assert [fault.field for fault in caught.value.errors] == [field]


def test_all_faults_are_named_at_once() -> None:
    """A body with several faults is told all of them."""
    with pytest.raises(Invalid) as caught:
        intake.check(body(map="", name="a\nb", resources=AskedResources(cpu=0, memory=0)))
    assert [fault.field for fault in caught.value.errors] == ["map", "name", "resources.cpu", "resources.memory"]


def test_a_good_body_passes() -> None:
    """Everything within its bounds is taken."""
    labels = {f"k{n}": "v" * 255 for n in range(64)}
    intake.check(body(name="CT 1/2", labels=labels, resources=AskedResources(cpu=0.01, memory=16 * 1024**2, gpus=0)))


@pytest.mark.parametrize("labels", [{f"k{n}": "v" for n in range(65)}, {"k" * 64: "v"}, {"k": "v" * 256}])
def test_labels_are_bounded(labels: dict[str, str]) -> None:
    """A job has at most 64 labels of 63 and 255 characters, and so have the nodes that it asks for."""
    with pytest.raises(ValidationError, match="labels"):
        body(labels=labels)
    with pytest.raises(ValidationError, match="node_labels"):
        AskedResources(node_labels=labels)


def test_an_unknown_resource_is_told() -> None:
    """A typing mistake in `resources` is an error, not silence."""
    with pytest.raises(ValidationError, match="memroy"):
        CreateJob.model_validate({"map": "m", "payload": "p", "resources": {"memroy": 1}})


def test_resources_are_laid_over_each_other() -> None:
    """The job's own resources win over the MAP's, and those over the defaults of one core and 1 GiB."""
    assert new_job().request.resources == Resources(cpu=2.0, memory=1024**3)
    job = new_job(resources=AskedResources(memory=5 * 1024**2))
    assert job.resources == job.request.resources == Resources(cpu=2.0, memory=5 * 1024**2)
    assert type(job.resources) is Resources


def test_resources_of_a_map_are_checked_too() -> None:
    """A MAP whose manifest asks for what nobody may have is refused by the name of the field."""
    description = a_map().description
    assert description
    with pytest.raises(Invalid) as caught:
        new_job(document=a_map(description=description.but(resources=Resources(cpu=-1))))
    assert [fault.field for fault in caught.value.errors] == ["resources.cpu"]


def test_the_timeout_is_the_jobs_then_the_maps_then_the_deployments() -> None:
    """Job, MAP and settings say in this order how long a run may take; 0 is an answer: as long as it wants."""
    description = a_map().description
    assert description
    slow = a_map(description=description.but(timeout_s=50))
    assert new_job(document=slow, timeout_s=7).request.timeout_s == 7
    assert new_job(document=slow).request.timeout_s == 50
    assert new_job(Settings(job_timeout=9)).request.timeout_s == 9
    assert new_job(Settings(job_timeout=9), document=slow, timeout_s=0).request.timeout_s == 0
    assert new_job(Settings(job_timeout=0)).timeout_s == 0


def test_the_request_is_frozen_from_the_map() -> None:
    """Digest, command, environment and paths are kept in the job, with caller and admission."""
    job = new_job(Settings(admission=Admission.REJECT), handlers=("hdl_1", "hdl_1"))
    request = job.request
    assert (request.digest, request.command, request.environment) == ("sha256:00", ("python", "app.py"), {"A": "1"})
    assert (request.input_path, request.output_path, request.payload) == ("/in", "/out", PAYLOAD_ID)
    assert not request.gpu_sharing
    assert new_job(document=a_map(gpu_sharing=True)).request.gpu_sharing
    assert (job.admission, job.created_by, job.project) == (Admission.REJECT, "ann", "default")
    assert (job.handlers, new_job(handlers=()).handlers, new_job().handlers) == (("hdl_1",), (), None)
    assert new_job(admission=Admission.QUEUE).admission is Admission.QUEUE


@pytest.mark.parametrize("state", [state for state in MapState if state is not MapState.READY])
def test_only_a_map_that_is_ready_runs(state: MapState) -> None:
    """A MAP in any other state is refused."""
    with pytest.raises(MapNotReady):
        new_job(document=a_map(state=state))


def test_where_approval_is_required_only_approved_maps_run() -> None:
    """With the setting on nobody runs a MAP that is not approved; with it off everybody does."""
    strict = Settings(require_approval=True)
    with pytest.raises(MapNotReady, match="approved"):
        new_job(strict)
    assert new_job(strict, document=a_map(approved=True)).map.id == new_job().map.id
