"""What is seen of this host's GPUs at one moment, and what follows from it. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from gurney.model.resources import Gpu
from gurney.settings import GIB, MIB

OK, LOST, RESET_REQUIRED, FAILING, SILENT = "ok", "lost", "reset_required", "failing", "silent"
#: What runs on such a GPU cannot go on.
GONE = frozenset({LOST, RESET_REQUIRED})


class NoGpusError(Exception):
    """This host has no GPU, or no driver for one: that is no fault."""


class DriverError(Exception):
    """The driver fails as a whole."""


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU or MIG instance."""

    gpu: Gpu
    #: Bytes that each process holds there, by its id on the host; None: the driver does not tell.
    processes: Mapping[int, int | None] = field(default_factory=dict)
    #: Share of the last moment in which it computed, 0 to 1; None: the driver does not tell, as of MIG instances.
    busy: float | None = None
    #: The same by process, of those that computed.
    busy_by: Mapping[int, float] | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """All that one look has seen."""

    #: When it was complete, by the monotonic clock.
    at: float
    devices: tuple[Device, ...] = ()
    #: UUIDs of the GPUs that have answered, divided ones too.
    cards: frozenset[str] = frozenset()
    #: What the others suffer from, by UUID.
    broken: Mapping[str, str] = field(default_factory=dict)
    #: What cannot be said of a GPU by name, for people.
    faults: tuple[str, ...] = ()


def inventory(known: Iterable[Gpu], reading: Reading) -> tuple[Gpu, ...]:
    """Return the GPUs of the host, in view of those that were known before.

    One that is no longer told is lost, unless its GPU has answered: then it was divided, or divided in another way.
    """
    told = {device.gpu.uuid: device.gpu for device in reading.devices}
    missing = [gpu for gpu in known if gpu.uuid not in told and _card(gpu) not in reading.cards]
    return (*told.values(), *(gpu.but(health=reading.broken.get(_card(gpu), LOST)) for gpu in missing))


def ailing(known: Iterable[Gpu], health: str) -> tuple[Gpu, ...]:
    """Return the GPUs as last seen, while their driver tells nothing of any: nothing goes there."""
    return tuple(gpu.but(health=health) for gpu in known)


def described(text: str, node: str) -> tuple[Gpu, ...]:
    """Return the GPUs that the setting `gpus` describes, such as `4x80Gi:A100`; its form was checked."""
    return tuple(
        gpu.but(uuid=f"GPU-simulated-{node}-{number}") for number, gpu in enumerate(_described(text.split(",")))
    )


def _described(parts: Iterable[str]) -> Iterator[Gpu]:
    for part in parts:
        amount, model, capability = (*part.split(":"), "", "")[:3]
        count, _, size = amount.partition("x")
        memory = int(size[:-2]) * (GIB if size.endswith("Gi") else MIB)
        gpu = Gpu(uuid="", model=model or "simulated", memory=memory, compute_capability=capability or None)
        yield from [gpu] * int(count)


def _card(gpu: Gpu) -> str:
    return gpu.parent or gpu.uuid
