"""Every setting, in one frozen object: `GURNEY_*` environment variables, or one TOML file named by `GURNEY_CONFIG`.

What is secret may lie in a folder named by `GURNEY_SECRETS_DIR` instead, a file for each value: `gurney_run_secret`.
Each field documents itself; `docs/settings.md` is generated from here.
"""

import os
import socket
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from gurney.errors import Invalid
from gurney.model.access import Role
from gurney.model.job import Admission
from gurney.model.resources import Quota

#: The variable that names the folder of secrets; no file names it.
SECRETS_DIR = "GURNEY_SECRETS_DIR"

#: The least number of heartbeats that a node may miss before it is lost.
BEATS_UNTIL_LOST = 3

_PREFIX = "GURNEY_"
#: Variables of what has settings of its own.
OTHERS = ("GURNEY_MIS_", "GURNEY_INFERENCE_SERVER_")
#: How alike a variable and a setting are at least when one is the other misspelt.
ALIKE = 0.75

_GPUS = r"[1-9]\d{0,2}x[1-9]\d{0,6}(Mi|Gi)(:[^:,]{1,64}(:\d{1,2}\.\d{1,2})?)?"
#: How GPUs are described: count, memory of each, model, compute capability.
GPUS_PATTERN = rf"^(none|{_GPUS}(,{_GPUS})*)$"

KIB, MIB, GIB = 1024, 1024**2, 1024**3


def default_node() -> str:
    """Return the host name's first label as a node id."""
    label = "".join(c if c.isalnum() else "-" for c in socket.gethostname().partition(".")[0].lower()).strip("-")
    return label[:63] or "node"


class Settings(BaseSettings):
    """The deployment's settings. Durations in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="forbid", use_attribute_docstrings=True)

    secrets_dir: Path | None = None
    """Folder of secrets, for example /run/secrets: `gurney_<setting>` has a setting's value, `nats_<user>` the password
    of a NATS user, as `gurney credentials` makes them. From the environment only."""
    nats_url: str = "nats://127.0.0.1:4222"
    """Where the NATS server listens; several of one cluster, separated by commas."""
    nats_user: str | None = None
    """User of this process at the NATS server; None: the user that `secrets_dir` has for the service, if any."""
    nats_password: SecretStr | None = None
    """Password of that user."""
    mongo_url: SecretStr | None = None
    """Where MongoDB listens, mongodb://user:password@host/?replicaSet=rs0; None: `data` keeps the documents."""
    mongo_database: str = Field(default="gurney", min_length=1, max_length=63, pattern=r"^[A-Za-z0-9_-]+$")
    """Name of the database in MongoDB."""
    data: Path = Path("gurney-data")
    """Folder of everything that this host keeps: documents and objects (embedded), runs, MAP copies."""
    s3_url: str | None = Field(default=None, pattern=r"^https?://[^/?#@]+/?$")
    """Where the S3 server of the objects listens, for example http://127.0.0.1:9000; None: a folder in `data`."""
    s3_public_url: str | None = Field(default=None, pattern=r"^https?://[^/?#@]+/?$")
    """The S3 server's address as edges and agents reach it, where that is another."""
    s3_bucket: str = Field(default="gurney", pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
    """Bucket of the objects; made where it is missing."""
    s3_region: str = "us-east-1"
    """Region of the S3 server."""
    s3_access_key: str = ""
    """Name of the account at the S3 server; only the payload service needs it."""
    s3_secret_key: SecretStr = SecretStr("")
    """Secret of that account."""
    s3_redirect: bool = False
    """Clients fetch files from the S3 server itself (307), which they must reach; the edge then verifies no file."""
    host: str = "127.0.0.1"
    """Address on which the edge listens."""
    port: int = Field(default=8350, ge=0, le=65535)
    """Port on which the edge listens; 0 takes a free one."""
    reuse_port: bool = False
    """Several edges of this host share the port: the kernel spreads connections over them."""
    node: str = Field(default_factory=default_node, pattern=r"^[a-z0-9-]{1,63}$")
    """Id of this host's node; by default the host name's first label."""
    maps: Path | None = None
    """Folder of folder MAPs, for `urn:gurney:dir:<name>`."""
    docker_url: str | None = Field(default=None, pattern=r"^(none|unix:///.+|tcp://[^/]+)$")
    """Where the Docker daemon listens, for example unix:///var/run/docker.sock; None: `DOCKER_HOST` or where it always
    is, if it answers; `none`: no Docker."""
    registry_config: Path | None = None
    """Docker client configuration (as ~/.docker/config.json, which None stands for) with the credentials of registries
    or the helpers that have them; read anew for each pull."""
    image_cache: int = Field(default=100 * GIB, ge=0)
    """Bytes of pulled images that stay on this host, those that images share counted for each; past it the least
    recently used go that nothing uses. Only what Gurney pulled counts, and goes. 0: all stay."""
    admission: Admission = Admission.QUEUE
    """What happens when a job finds no room and does not say itself: `queue` or `reject`."""
    quotas: dict[str, Quota] = {}
    """What the jobs of a project may hold at a time, as JSON: `{"research": {"gpus": 4, "cpu": 64}}`; `*`: each project
    that is not named. What is not said is not bounded; a share of a GPU counts as that share."""
    require_approval: bool = False
    """Only approved MAPs may run."""
    allow_network: bool = False
    """MAPs that ask for a network get one that leads outside, and to no other run; otherwise no run has any."""
    admin_token: SecretStr | None = None
    """Is an administrator's token at the edge from its first request on."""
    client_tokens: dict[str, Role] = {}
    """Further tokens that are there then, as JSON of subjects and roles: `{"mis": "developer"}`. What each is lies in
    `secrets_dir`: `gurney_mis_token`."""
    run_secret: SecretStr = SecretStr("")
    """Signs the tokens that let a run's agent read its input and write its results. Shared by scheduler and payload."""
    sync: Literal["full", "normal"] = "full"
    """`full`: a document counts when it is synced to disk; `normal`: a power cut may lose the last moments."""
    max_upload: int = Field(default=64 * GIB, gt=0)
    """Largest file or archive that a client may upload."""
    upload_timeout: float = Field(default=86_400.0, gt=0)
    """Seconds that the upload of a file may take; after that it is given up, and what a crash left is cleared away."""
    sync_runs: int = Field(default=16, ge=0)
    """Requests of `POST /v1/run` that an edge keeps open at a time; one more is refused as `busy`."""
    max_archive_files: int = Field(default=100_000, gt=0)
    """Most entries in an uploaded archive."""
    content_cache: int = Field(default=64 * GIB, ge=0)
    """Bytes of what MAPs bring along in payloads that a node keeps for the next run; what runs use stays anyway."""
    events_max_messages: int | None = Field(default=None, gt=0)
    """Bound of the stream EVENTS, in messages; None: as many as fit, embedded 20,000."""
    events_max_bytes: int = Field(default=1 * GIB, gt=0)
    """Bound of the stream EVENTS, in bytes."""
    events_max_age: float = Field(default=7 * 86400, gt=0)
    """Bound of the stream EVENTS, in seconds."""
    heartbeat_interval: float = Field(default=5.0, gt=0)
    """Seconds between two heartbeats of an agent."""
    node_lost_after: float = Field(default=30.0, gt=0)
    """Seconds without a heartbeat after which a node is lost; several heartbeats must fit in. The same everywhere."""
    run_lease: float = Field(default=300.0, ge=0)
    """Seconds for which a run lives on after the last heartbeat that named it; a host that is cut off for longer ends
    its runs. 0: no lease, where there is one host only, as embedded: its runs wait for it."""
    leader_term: float = Field(default=4.0, gt=0)
    """Seconds after which a standby scheduler takes over from a leader that renews its lease no more. The same for
    all schedulers."""
    reconcile_interval: float = Field(default=30.0, gt=0)
    """Seconds between two rounds in which a service makes up what is missing."""
    request_timeout: float = Field(default=5.0, gt=0)
    """Seconds that a question to another service may take."""
    job_timeout: float = Field(default=86_400.0, ge=0)
    """Seconds that a run may take when neither job nor MAP say so; 0: as long as it wants."""
    max_output: int = Field(default=64 * GIB, gt=0)
    """Bytes that a run may leave in its output; the job of one that leaves more fails as `output_rejected`."""
    max_output_files: int = Field(default=1_000_000, gt=0)
    """Files, folders and links that a run may leave in its output."""
    attempts: int = Field(default=3, ge=1)
    """How often a job is started when the infrastructure fails under it."""
    stop_grace: float = Field(default=10.0, ge=0)
    """Seconds between SIGTERM and SIGKILL."""
    transfer_patience: float = Field(default=600.0, ge=0)
    """Seconds for which staging and the upload of results are retried in place."""
    infeasible_after: float = Field(default=600.0, ge=0)
    """Seconds after which a queued job that no node can hold any more fails."""
    reserve_memory: int = Field(default=512 * MIB, ge=0)
    """Memory of the host that is not given to jobs."""
    cpu: float | None = Field(default=None, gt=0)
    """Cores that are given to jobs; by default all that this process may use."""
    memory: int | None = Field(default=None, gt=0)
    """Memory that is given to jobs; by default the host's less `reserve_memory`."""
    gpus: str | None = Field(default=None, pattern=GPUS_PATTERN)
    """GPUs of this host that only exist on paper, for tests and simulations: `4x80Gi`, `4x80Gi:A100,2x24Gi:L4:8.9` with
    model and compute capability; `none`: no job gets those that are there. None: those that the NVIDIA driver tells."""
    gpu_probe_interval: float = Field(default=30.0, ge=0)
    """Seconds between two looks whether a run's container may still open the devices of its GPUs; 0: nobody looks."""
    gpu_sharing: bool = False
    """Jobs that ask a share of a GPU's memory share one here; else only those whose MAP allows it. Watched, not walled:
    `docs/gpus.md`."""
    webhook_private: Literal["none", "loopback", "all"] = "none"
    """Which private addresses job handlers may have: none, this host only (embedded, where nothing is said), all."""
    webhook_timeout: float = Field(default=10.0, gt=0, le=20)
    """Seconds that a job handler may take to answer."""
    webhook_patience: float = Field(default=86_400.0, gt=0)
    """Seconds over which a delivery is retried before it is kept as failed."""
    start_timeout: float = Field(default=60.0, ge=0)
    """Seconds for which `gurney serve` waits at its start for what its services stand on, before it gives up."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of `/livez`, `/readyz` and `/metrics` of a process of `gurney serve`; None: none."""
    metrics_public: bool = True
    """`/metrics` needs no token."""
    log_level: Literal["info", "debug"] = "info"
    """`debug` is the verbose level."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """JSON lines with all there is, or short lines of text for people; `auto`: text on a terminal, else JSON."""
    otlp_endpoint: str | None = Field(default=None, pattern=r"^https?://[^/?#@]+(/[^?#]*)?$")
    """Where traces go (OTLP over HTTP), for example http://127.0.0.1:4318; None: nowhere."""
    trace_ratio: float = Field(default=1.0, ge=0, le=1)
    """Share of the traces begun here that are recorded. Those of a caller who says himself follow what he says."""

    @model_validator(mode="after")
    def _times_fit(self) -> Self:
        """Raise `Invalid` for times of which one leaves no room for another."""
        least = BEATS_UNTIL_LOST * self.heartbeat_interval
        if self.node_lost_after < least:
            raise Invalid.field(
                "node_lost_after",
                f"{self.node_lost_after:g} s must be at least {BEATS_UNTIL_LOST} heartbeats ({least:g} s), or else "
                "nodes are lost that are there",
            )
        if 0 < self.run_lease < self.node_lost_after:
            raise Invalid.field(
                "run_lease",
                f"{self.run_lease:g} s must be 0 or at least node_lost_after ({self.node_lost_after:g} s), or else "
                "runs end whose node is not lost",
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del dotenv_settings, file_secret_settings
        file = os.environ.get("GURNEY_CONFIG")
        toml = (TomlConfigSettingsSource(settings_cls, Path(file)),) if file else ()
        return (init_settings, env_settings, *secrets(settings_cls), *toml)


def secrets(settings_cls: type[BaseSettings]) -> tuple[SecretsSettingsSource, ...]:
    """Return the folder of secrets as a source, where one is named; raises `Invalid` where it is not there."""
    folder = os.environ.get(SECRETS_DIR)
    if folder and not Path(folder).is_dir():
        raise Invalid(f"{SECRETS_DIR}: there is no folder {folder}")
    return (SecretsSettingsSource(settings_cls, Path(folder)),) if folder else ()


def misspelt(variables: Iterable[str]) -> dict[str, str]:
    """Return the variables that look like a setting and are none, and which: they would be passed over in silence."""
    known = [name.upper() for name in Settings.model_fields]
    ours = (
        name.removeprefix(_PREFIX) for name in variables if name.startswith(_PREFIX) and not name.startswith(OTHERS)
    )
    likely = {name: get_close_matches(name, known, n=1, cutoff=ALIKE) for name in ours if name not in known}
    return {_PREFIX + name: _PREFIX + meant[0] for name, meant in likely.items() if meant}
