"""Which failures are tried again. Pure."""

from gurney.model.job import Job

#: Faults of the infrastructure: tried again, whatever the job asks.
INFRASTRUCTURE = frozenset(
    {"node_lost", "gpu_lost", "image_unavailable", "input_unavailable", "output_unavailable", "internal"}
)
#: These end a job, however many retries it asks for.
FINAL = frozenset({"infeasible", "canceled"})


def counted(failures: tuple[int, int], code: str) -> tuple[int, int]:
    """Return the failures (of the infrastructure, of the application) with one more."""
    infrastructure, application = failures
    if code in INFRASTRUCTURE:
        return infrastructure + 1, application
    return infrastructure, application + 1


def again(job: Job, code: str, attempts: int) -> bool:
    """Tell whether a job that has just failed so gets another attempt; whether it was canceled is not asked here.

    `attempts` limits how often a job is started when nothing but the infrastructure fails under it. Failures of the
    application have a budget of their own, `job.retries`.
    """
    if code in FINAL:
        return False
    infrastructure, application = counted(job.failures, code)
    if code in INFRASTRUCTURE:
        return infrastructure < attempts
    return application <= job.retries
