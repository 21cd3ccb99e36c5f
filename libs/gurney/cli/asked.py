"""What is asked for with a job: the options that `gurney run` and `gurney job create` share."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import ByteSize, TypeAdapter, ValidationError

from gurney.cli.output import invalid
from gurney.errors import Invalid

#: KEY=VALUE, each with the option before it.
Pairs = Annotated[tuple[str, ...], Parameter(negative=())]

_SIZE = TypeAdapter(ByteSize)


@Parameter(name="*")
@dataclass(frozen=True)
class Asked:
    """Options of a job."""

    name: Annotated[str | None, Parameter(group="Job")] = None
    """A name for people."""
    label: Annotated[tuple[str, ...], Parameter(group="Job", negative=())] = ()
    """A label as KEY=VALUE; may be given several times."""
    handler: Annotated[tuple[str, ...], Parameter(group="Job", negative=())] = ()
    """A job handler that hears of this job, instead of all that match; may be given several times."""
    priority: Annotated[str | None, Parameter(group="Job")] = None
    """lower, normal, higher or immediate."""
    admission: Annotated[str | None, Parameter(group="Job")] = None
    """queue: wait for room; reject: be refused where there is none now."""
    timeout: Annotated[float | None, Parameter(group="Job")] = None
    """Seconds that the run may take; 0 for as long as it wants."""
    retries: Annotated[int | None, Parameter(group="Job")] = None
    """How often an application that failed is tried again."""
    cpu: Annotated[float | None, Parameter(group="Resources")] = None
    """Cores."""
    memory: Annotated[str | None, Parameter(group="Resources")] = None
    """Memory, such as 8Gi."""
    shared_memory: Annotated[str | None, Parameter(group="Resources")] = None
    """Shared memory, such as 2Gi."""
    gpus: Annotated[int | None, Parameter(group="Resources")] = None
    """Whole GPUs."""
    gpu_memory: Annotated[str | None, Parameter(group="Resources")] = None
    """Memory that each GPU has at least, such as 24Gi."""
    gpu_model: Annotated[str | None, Parameter(group="Resources")] = None
    """Model of the GPUs."""
    node_label: Annotated[tuple[str, ...], Parameter(group="Resources", negative=())] = ()
    """A label KEY=VALUE that the node has; may be given several times."""

    def options(self) -> dict[str, Any]:
        """Return the fields of POST /v1/jobs that are given; raises `Invalid` for what the API would refuse."""
        from gurney.model.job import CreateJob

        resources = {
            "cpu": self.cpu,
            "memory": _bytes("memory", self.memory),
            "shared_memory": _bytes("shared-memory", self.shared_memory),
            "gpus": self.gpus,
            "gpu_memory": _bytes("gpu-memory", self.gpu_memory),
            "gpu_model": self.gpu_model,
            "node_labels": pairs("node-label", self.node_label) or None,
        }
        asked: dict[str, Any] = {
            "name": self.name,
            "labels": pairs("label", self.label) or None,
            "handlers": list(self.handler) or None,
            "priority": self.priority,
            "admission": self.admission,
            "timeout_s": self.timeout,
            "retries": self.retries,
            "resources": _given(resources) or None,
        }
        options = _given(asked)
        try:
            CreateJob(map="", payload="", **options)
        except ValidationError as error:
            raise invalid(error) from None
        return options


#: Where nothing is asked for.
NOTHING = Asked()


def pairs(option: str, texts: Iterable[str]) -> dict[str, str]:
    """Return KEY=VALUE texts as a mapping; raises `Invalid`."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise Invalid(f"{option}: {text!r} is not KEY=VALUE")
        found[key] = value
    return found


def _bytes(option: str, text: str | None) -> int | None:
    """Return the bytes of a size; `Gi` is `GiB`, as manifests and Kubernetes have it."""
    if text is None:
        return None
    try:
        return int(_SIZE.validate_python(f"{text}B" if text[-1:].lower() == "i" else text))
    except ValidationError:
        raise Invalid(f"{option}: {text!r} is no size such as 8Gi") from None


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
