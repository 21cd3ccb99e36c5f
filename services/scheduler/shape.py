"""What a job asks of a node, as one comparable value: jobs of the same shape fit, or do not fit, alike. Pure."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from gurney.model.job import RunRequest
from gurney.model.resources import Resources

#: Cores are counted in thousandths, as whole numbers: sums of many small shares stay exact.
MILLI = 1000


@dataclass(frozen=True, slots=True)
class Shape:
    """Memory in bytes, cpu in thousandths of a core, whole GPUs."""

    urn: str
    cpu: int = 0
    memory: int = 0
    gpus: int = 0
    #: Bytes that each of the GPUs has at least.
    gpu_memory: int = 0
    gpu_model: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    #: Nodes that are tried last.
    avoid: tuple[str, ...] = ()


def shape_of(request: RunRequest, avoid: Iterable[str] = ()) -> Shape:
    """Return the shape of a request."""
    asked = request.resources
    return Shape(
        urn=request.urn,
        cpu=milli(asked.cpu or 0),
        memory=asked.memory or 0,
        gpus=gpus_of(asked),
        gpu_memory=max(asked.gpu_memory or 0, asked.gpu_share or 0),
        gpu_model=asked.gpu_model,
        labels=tuple(sorted((asked.node_labels or {}).items())),
        avoid=tuple(sorted(avoid)),
    )


def gpus_of(resources: Resources) -> int:
    """Return how many whole GPUs are taken; a share of one takes all of it."""
    return resources.gpus or (1 if resources.gpu_share else 0)


def milli(cores: float) -> int:
    """Return cores in thousandths, rounded up: nobody gets less than asked."""
    return math.ceil(round(cores * MILLI, 6))
