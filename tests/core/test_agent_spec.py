"""What the runtime is told of a run that shares a GPU."""

from pathlib import Path

import pytest

from gurney.model.job import RunRequest
from gurney.model.resources import Resources
from gurney.model.run import StartRun
from gurney.settings import GIB, MIB
from services.agent.folders import Work
from services.agent.spec import spec_of


def variables(share: int, memory: int | None, **environment: str) -> dict[str, str]:
    """Return what a run of a share is told, in MiB; `memory`: of its GPU, in bytes, None where it is not known."""
    request = RunRequest(
        urn="urn:x",
        digest="d",
        generation="monai",
        command=("x",),
        environment=environment,
        input_path="i",
        output_path="o",
        payload="p",
        resources=Resources(),
    )
    start = StartRun(
        run_id="r", job_id="j", attempt=1, node="n", epoch=1, gpus=("a",), gpu_share=share, request=request, token="t"
    )
    gpus = {} if memory is None else {"a": memory}
    work = Work(Path("host"), "r")
    spec = spec_of(start, work, 1.0, "00-1-2-01", None, content_dir=None, gpu_memory=gpus, gpus_simulated=False)
    assert spec.extra_environment["TRACEPARENT"] == "00-1-2-01"
    return {**spec.environment, **spec.extra_environment}


@pytest.mark.parametrize(
    ("share", "memory", "fraction"), [(20_480, 80 * GIB, "0.25"), (1000, 3000 * MIB, "0.3333"), (1000, None, None)]
)
def test_a_run_is_told_its_share(share: int, memory: int | None, fraction: str | None) -> None:
    """In MiB, and as a part of its GPU, never more than that; of a GPU that is not known the part is not, either."""
    told = variables(share, memory)
    assert (told["GURNEY_GPU_MEMORY_MIB"], told.get("GURNEY_GPU_MEMORY_FRACTION")) == (str(share), fraction)


def test_frameworks_do_not_take_the_whole_gpu_at_once() -> None:
    """Those that would are told to take memory as they need it, unless the MAP says otherwise."""
    assert variables(1000, GIB)["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    told = variables(1000, GIB, TF_FORCE_GPU_ALLOW_GROWTH="false")
    assert (told["TF_FORCE_GPU_ALLOW_GROWTH"], told["XLA_PYTHON_CLIENT_PREALLOCATE"]) == ("false", "false")


def test_a_run_that_has_its_gpu_for_itself_is_told_nothing() -> None:
    """All of it is the run's."""
    assert set(variables(0, GIB)) == {"TRACEPARENT"}
