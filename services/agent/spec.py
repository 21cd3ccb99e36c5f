"""What the runtime is told of a run."""

from collections.abc import Mapping
from pathlib import Path

from gurney.model.run import StartRun
from gurney.runtime.port import RunSpec
from gurney.settings import MIB
from services.agent.folders import Work

#: Cores of a run that does not say what it needs.
_DEFAULT_CPU = 1.0
#: Has frameworks take GPU memory as they need it, which else take most of the GPU at their start.
_FRUGAL = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def spec_of(
    start: StartRun,
    work: Work,
    timeout_s: float | None,
    traceparent: str | None,
    lease_until: float | None,
    *,
    content_dir: Path | None,
    gpu_memory: Mapping[str, int],
    gpus_simulated: bool,
) -> RunSpec:
    """Return the start in the runtime's words.

    `content_dir`: where what the MAP brings along is kept; `gpu_memory`: bytes of each GPU.
    """
    request = start.request
    return RunSpec(
        run_id=start.run_id,
        job_id=start.job_id,
        attempt=start.attempt,
        node=start.node,
        urn=request.urn,
        digest=request.digest,
        generation=request.generation,
        command=request.command,
        environment={**(_FRUGAL if start.gpu_share else {}), **request.environment},
        working_directory=request.working_directory,
        input_path=request.input_path,
        output_path=request.output_path,
        input_dir=work.input,
        output_dir=work.output,
        content_path=request.content.path if request.content else None,
        content_dir=content_dir,
        cpu=request.resources.cpu or _DEFAULT_CPU,
        memory=request.resources.memory or 0,
        shared_memory=request.resources.shared_memory,
        gpus=start.gpus,
        gpus_simulated=gpus_simulated,
        timeout_s=timeout_s,
        project=start.project,
        hardening=request.hardening,
        network=request.network,
        lease_until=lease_until,
        extra_environment={
            **({"TRACEPARENT": traceparent} if traceparent else {}),
            **_share_variables(start, gpu_memory),
        },
    )


def _share_variables(start: StartRun, gpu_memory: Mapping[str, int]) -> dict[str, str]:
    """Return what tells a run its share of a GPU: in MiB, and of the whole GPU, cut to four places."""
    if not start.gpu_share:
        return {}
    told = {"GURNEY_GPU_MEMORY_MIB": str(start.gpu_share)}
    if memory := gpu_memory.get(start.gpus[0]):
        told["GURNEY_GPU_MEMORY_FRACTION"] = str(start.gpu_share * MIB * 10_000 // memory / 10_000)
    return told
