"""What the runtime is told of a run."""

from pathlib import Path

from gurney.model.run import StartRun
from gurney.runtime.port import RunSpec
from services.agent.folders import Work

#: Cores of a run that does not say what it needs.
_DEFAULT_CPU = 1.0


def spec_of(
    start: StartRun,
    work: Work,
    timeout_s: float | None,
    traceparent: str | None,
    lease_until: float | None,
    *,
    content_dir: Path | None,
    gpus_simulated: bool,
) -> RunSpec:
    """Return the start in the runtime's words; `content_dir`: where what the MAP brings along is kept."""
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
        environment=request.environment,
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
        extra_environment={"TRACEPARENT": traceparent} if traceparent else {},
    )
