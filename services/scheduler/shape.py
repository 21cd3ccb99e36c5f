"""What a job asks of a node, as one comparable value: jobs of the same shape fit, or do not fit, alike. Pure."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from gurney.model.job import RunRequest
from gurney.model.resources import Gpu, Resources

#: Cores are counted in thousandths, as whole numbers: sums of many small shares stay exact.
MILLI = 1000
MIB = 1024 * 1024
#: What other software uses counts in steps of so many bytes: it changes all the time, and kinds of GPUs are kept.
OTHERS = 64 * MIB
#: What no GPU has: more MiB than there are, or a compute capability that nobody can name.
NEVER = 2**62

Capability = tuple[int, ...]


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """Memory in bytes, cpu in thousandths of a core."""

    urn: str
    cpu: int = 0
    memory: int = 0
    #: How many; with a share it is one.
    gpus: int = 0
    #: MiB of that one GPU; 0: whole GPUs.
    gpu_share: int = 0
    #: Its MAP allows that its GPU is shared, also where the node's pool does not say so.
    may_share: bool = False
    #: Bytes that each of the GPUs has at least.
    gpu_memory: int = 0
    #: Any of these; empty: any at all.
    gpu_models: tuple[str, ...] = ()
    #: At least; empty: any at all.
    compute_capability: Capability = ()
    labels: tuple[tuple[str, str], ...] = ()
    #: Nodes that are tried last.
    avoid: tuple[str, ...] = ()
    #: Found once: a decision looks shapes up by the thousand.
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        asked = (self.urn, self.cpu, self.memory, self.gpus, self.gpu_share, self.gpu_memory, self.labels, self.avoid)
        object.__setattr__(self, "_hash", hash(asked))

    def __hash__(self) -> int:
        return self._hash


class Device(NamedTuple):
    """What tells GPUs apart: those that are equal here suit the same shapes."""

    model: str
    #: Bytes.
    memory: int
    capability: Capability
    #: The node's pool allows that it is shared.
    shared: bool
    #: A MIG instance: nobody shares it, whoever allows it.
    divided: bool = False
    #: MiB that other software of its host has in use.
    others: int = 0

    @property
    def mib(self) -> int:
        """What can be given of it."""
        return max(1, mib(self.memory) - self.others)


def shape_of(request: RunRequest, avoid: Iterable[str] = ()) -> Shape:
    """Return the shape of a request."""
    asked = request.resources
    return Shape(
        urn=request.urn,
        cpu=milli(asked.cpu or 0),
        memory=asked.memory or 0,
        gpus=gpus_of(asked),
        gpu_share=0 if (asked.gpus or 0) > 1 else -(-(asked.gpu_share or 0) // MIB),
        gpu_memory=max(asked.gpu_memory or 0, asked.gpu_share or 0),
        gpu_models=tuple(sorted({name.strip() for name in (asked.gpu_model or "").split("|")} - {""})),
        compute_capability=capability_of(asked.compute_capability),
        may_share=request.gpu_sharing,
        labels=tuple(sorted((asked.node_labels or {}).items())),
        avoid=tuple(sorted(avoid)),
    )


def gpus_of(resources: Resources) -> int:
    """Return how many GPUs are asked; a share is of one."""
    return resources.gpus or (1 if resources.gpu_share else 0)


def device_of(gpu: Gpu, *, shared: bool) -> Device:
    """Return what matters of a GPU. One that does not tell its compute capability has none that somebody could ask."""
    capability = capability_of(gpu.compute_capability) or (-1,)
    others = round(gpu.others / OTHERS) * OTHERS // MIB
    return Device(gpu.model, gpu.memory, capability, shared, gpu.parent is not None, others)


@lru_cache(maxsize=4096)
def takes(device: Device, shape: Shape) -> int:
    """Return how many MiB of such a GPU the shape takes: all, where it is not shared; `NEVER`: it does not do.

    A share that does in itself, but has no room beside the other software, takes more than there is.
    """
    suits = (
        device.memory >= shape.gpu_memory
        and (not shape.gpu_models or device.model in shape.gpu_models)
        and (not shape.compute_capability or device.capability >= shape.compute_capability)
        and mib(device.memory) >= shape.gpu_share
    )
    if not suits:
        return NEVER
    shares = shape.gpu_share and not device.divided and (device.shared or shape.may_share)
    return shape.gpu_share if shares else max(device.mib, shape.gpu_share)


@lru_cache(maxsize=1024)
def capability_of(text: str | None) -> Capability:
    """Return a compute capability such as 8.6 as numbers that compare; of other text, one that no GPU has."""
    if not text:
        return ()
    return tuple(int(part) for part in text.split(".")) if re.fullmatch(r"\d{1,4}(\.\d{1,4})?", text) else (NEVER,)


def milli(cores: float) -> int:
    """Return cores in thousandths, rounded up: nobody gets less than asked."""
    return math.ceil(round(cores * MILLI, 6))


def mib(size: int) -> int:
    """Return bytes in MiB, rounded down; never 0, so that a GPU that does not tell its memory can be taken."""
    return max(1, size // MIB)
