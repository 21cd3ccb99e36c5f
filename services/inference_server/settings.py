"""The façade's deployment: `GURNEY_INFERENCE_SERVER_*` variables. `docs/migrate/inference-server.md` tells them."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from gurney.errors import Invalid
from gurney.facade import FacadeSettings
from gurney.settings import GIB

PREFIX = "GURNEY_INFERENCE_SERVER_"
#: How InferenceServer itself names it.
PUBLIC_MODELS = "ALLOW_PUBLIC_POST_MODEL"

Listener = Literal["public", "private", "v2"]


def _listed(given: object) -> object:
    return [name.strip() for name in given.split(",") if name.strip()] if isinstance(given, str) else given


class InferenceServerSettings(FacadeSettings):
    """What a deployment says. Durations in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True
    )

    data: Path = Path("gurney-inference-server")
    """Folder of its documents, where there is no MongoDB (`GURNEY_MONGO_URL`), and of uploads on their way."""
    listeners: Annotated[tuple[Listener, ...], NoDecode, BeforeValidator(_listed), Field(min_length=1)] = (
        "public",
        "private",
    )
    """Which of `public`, `private` and `v2` (version 2.0) it serves, separated by commas."""
    public_host: str = "127.0.0.1"
    """Address of the public listener."""
    public_port: int = Field(default=8000, ge=0, le=65535)
    """Port of the public listener; 0 takes a free one."""
    private_host: str = "127.0.0.1"
    """Address of the private listener: of the loopback device or of a private network."""
    private_port: int = Field(default=7000, ge=0, le=65535)
    """Port of the private listener."""
    v2_host: str = "127.0.0.1"
    """Address of the listener of version 2.0."""
    v2_port: int = Field(default=8123, ge=0, le=65535)
    """Port of the listener of version 2.0."""
    v2_token: SecretStr | None = None
    """What clients of version 2.0 send as `X-Token`."""
    allow_public_post_model: str = Field(
        default="", validation_alias=AliasChoices(f"{PREFIX}{PUBLIC_MODELS}", PUBLIC_MODELS)
    )
    """Not empty, whatever it says: models may be posted to the public listener. `ALLOW_PUBLIC_POST_MODEL` does, too."""
    cpu: float = Field(default=1, gt=0)
    """Cores of a task."""
    memory: int = Field(default=4 * GIB, ge=6 * 1024**2)
    """Bytes of memory of a task."""
    shared_memory: int | None = Field(default=None, ge=0)
    """Bytes of shared memory of a task; None: 64 MiB."""
    timeout: float | None = Field(default=None, ge=0)
    """Seconds that a task may run; 0: as long as it wants; None: what `GURNEY_JOB_TIMEOUT` says."""
    network: bool = False
    """Models have a network, where Gurney allows that."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Raise `Invalid` where the listener of version 2.0 has no token."""
        if "v2" in self.listeners and not (self.v2_token and self.v2_token.get_secret_value()):
            raise Invalid(f"{PREFIX}V2_TOKEN: version 2.0 needs one")
        return self
