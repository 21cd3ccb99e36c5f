"""What a job needs and what a node has. Memory in bytes, cpu in cores."""

from pydantic import ConfigDict

from gurney.model.base import InputLabels, Labels, Message


class Resources(Message):
    """What is asked for. None: not said."""

    cpu: float | None = None
    memory: int | None = None
    shared_memory: int | None = None
    gpus: int | None = None
    #: Bytes per GPU.
    gpu_memory: int | None = None
    #: Bytes of one GPU that may be shared with others.
    gpu_share: int | None = None
    gpu_model: str | None = None
    compute_capability: str | None = None
    node_labels: Labels | None = None

    def over(self, base: "Resources") -> "Resources":
        """Return `base` with everything that is said here laid over it."""
        return base.but(**{name: value for name, value in self if value is not None})


class AskedResources(Resources):
    """What a client asks for: unknown fields are errors, so that a typing mistake is told, not ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node_labels: InputLabels | None = None


class Gpu(Message):
    """What is given to runs as one device: a GPU, or an instance of one that is divided (MIG)."""

    #: As the driver names it; of a MIG instance its own.
    uuid: str
    model: str
    #: Bytes.
    memory: int
    #: Bytes in use by anybody, as the driver tells.
    used: int = 0
    #: `ok`, or in one word why nothing is placed on it (`docs/gpus.md`).
    health: str = "ok"
    #: Bytes of `used` that are not of runs: those in use when no run had it.
    others: int = 0
    #: As CUDA has it, such as `9.0`; None: not told.
    compute_capability: str | None = None
    #: Version of its driver; None: not told.
    driver: str | None = None
    #: UUID of the GPU of which it is a MIG instance; None: it is a whole one.
    parent: str | None = None


class Amount(Message):
    """CPU cores, bytes of memory and whole GPUs: of a node, or of what is used or free there."""

    cpu: float = 0.0
    memory: int = 0
    gpus: int = 0


class Quota(Message):
    """What the jobs of a project may hold at a time; None: as much as there is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Cores.
    cpu: float | None = None
    #: Bytes.
    memory: int | None = None
    #: A share of a GPU counts as that share.
    gpus: float | None = None
