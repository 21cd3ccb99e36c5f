"""MAPs: documents, what clients send and what crosses NATS about them."""

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from gurney.model.access import Caller
from gurney.model.base import Idempotency, Input, InputLabels, Labels, Message, Owned, Reason, Timestamp
from gurney.model.common import Filtered
from gurney.model.resources import AskedResources, Resources

Generation = Literal["monai", "holoscan", "supplied"]


class MapState(StrEnum):
    REGISTERING = "registering"
    READY = "ready"
    INVALID = "invalid"
    UNREGISTERED = "unregistered"


class Model(Message):
    """A model that a MAP brings, by its name and its path in the MAP."""

    name: str
    path: str


class Probe(Message):
    """How the packager would have an application asked whether it is well; kept, not used for jobs."""

    kind: str
    command: tuple[str, ...] = ()
    content: Any = None


class StaticContent(Message):
    """What a MAP brings along in a payload, for every run of it."""

    #: Payload id.
    payload: str
    #: Where a container has it, read-only.
    path: str
    #: Of all its files, as `gurney.content.digest_of` makes it.
    digest: str


class Description(Message):
    """The normalised view of a MAP's manifests, or what its registrant supplied."""

    generation: Generation
    #: An argument list, never empty.
    command: tuple[str, ...]
    environment: dict[str, str] = {}
    working_directory: str | None = None
    input_path: str
    output_path: str
    models: tuple[Model, ...] = ()
    resources: Resources = Resources()
    #: None: the deployment's default holds.
    timeout_s: float | None = None
    #: Runs are to have a network, where the deployment allows it.
    network: bool = False
    #: `liveness` and `readiness`, as far as the manifest has them.
    probes: tuple[Probe, ...] = ()
    content: StaticContent | None = None


class AskedContent(Input):
    """One payload, by id or name, that every run finds at `path`, read-only."""

    payload: str
    path: str


class AskedDescription(Input):
    """What a registrant says of an image that has no manifests, or whose manifests are not to count."""

    #: None: the image's own entrypoint and command; where there is none, what its manifests say.
    command: Annotated[tuple[str, ...], Field(min_length=1, max_length=1024)] | None = None
    environment: dict[str, str] = Field(default={}, max_length=1024)
    working_directory: str | None = None
    input_path: str = "/var/holoscan/input"
    output_path: str = "/var/holoscan/output"
    resources: AskedResources = AskedResources()
    timeout_s: Annotated[float, Field(gt=0, le=31_536_000)] | None = None
    network: bool = False
    content: AskedContent | None = None


class Hardening(Input):
    """How much of a host a run's container sees. `compatible` says why: the root file system may be written."""

    mode: Literal["strict", "compatible"] = "strict"
    reason: str | None = Field(default=None, max_length=1024)


class Manifest(Message):
    """A manifest as it lay in the MAP. `content` is its JSON, unchanged in meaning."""

    path: str
    generation: Generation
    content: Any


class Progress(Message):
    """How far a registration is."""

    phase: str
    done: int = 0
    total: int | None = None


class Inspecting(Message):
    """The inspection that is under way for a MAP."""

    id: str
    attempt: int = 1
    #: Nodes that were tried.
    nodes: tuple[str, ...] = ()
    deadline: Timestamp


class Map(Owned):
    PRIVATE: ClassVar[frozenset[str]] = frozenset({"idempotency", "inspecting", "supplied", "content"})
    LIST_OMITS: ClassVar[frozenset[str]] = frozenset({"manifests"})

    name: str | None = None
    #: Normalised URN (RFC 8141): `urn:oci:<reference>` or `urn:gurney:dir:<name>`.
    urn: str
    #: Pins the content, None until it was read.
    digest: str | None = None
    state: MapState
    reason: Reason | None = None
    approved: bool = False
    approved_by: str | None = None
    approved_at: Timestamp | None = None
    progress: Progress | None = None
    labels: Labels = {}
    manifests: tuple[Manifest, ...] = ()
    description: Description | None = None
    hardening: Hardening = Hardening()
    #: Its runs that ask a share of a GPU may share one, also on nodes that have not said so of theirs.
    gpu_sharing: bool = False
    ready_at: Timestamp | None = None
    inspecting: Inspecting | None = None
    #: What its registrant said of it.
    supplied: AskedDescription | None = None
    #: What it brings along, held as long as the MAP may run.
    content: StaticContent | None = None

    def unique_keys(self) -> tuple[str, ...]:
        named = (f"name:{self.project}:{self.name}",) if self.name else ()
        return (*super().unique_keys(), *named)


class RegisterMap(Input):
    """Body of POST /v1/maps."""

    urn: str
    name: str | None = None
    labels: InputLabels = {}
    description: AskedDescription | None = None
    hardening: Hardening = Hardening()
    #: Its runs that ask a share of a GPU may share one, also on nodes that have not said so of theirs.
    gpu_sharing: bool = False


class MapRegister(Message):
    caller: Caller
    body: RegisterMap
    idempotency: Idempotency | None = None
    dry_run: bool = False


class MapRefs(Message):
    maps: tuple[str, ...] = Field(max_length=256)


class MapsAlive(Message):
    """Of the MAPs asked for, those that may run, or may be able to yet."""

    live: tuple[str, ...] = ()


class MapList(Filtered):
    name: str | None = None
    state: MapState | None = None
    urn: str | None = None


class InspectMap(Message):
    """map -> scheduler (`svc.scheduler.inspect`), scheduler -> agent (`run.<node>.inspect.<id>`)."""

    id: str
    map_id: str
    urn: str
    #: Nodes that were tried: asked again only where no other node can do it.
    avoid: tuple[str, ...] = ()
    #: Somebody has said what the image does: it needs no manifests.
    described: bool = False


class InspectAccepted(Message):
    node: str


class InspectReport(Message):
    """agent -> map: what was read, or why nothing could be. Phases `progress`, `done`, `failed`."""

    id: str
    map_id: str
    node: str
    phase: Literal["progress", "done", "failed"]
    progress: Progress | None = None
    digest: str | None = None
    #: Path -> text of the manifest, together at most 128 KiB.
    manifests: dict[str, str] = {}
    #: The image's own entrypoint and command.
    command: tuple[str, ...] = ()
    reason: Reason | None = None


class MapEvent(Message):
    """Data of `map.<event>.<map_id>`."""

    id: str
    project: str
    created_by: str
    name: str | None
    urn: str
    digest: str | None
    state: MapState
    reason: Reason | None
    at: Timestamp
