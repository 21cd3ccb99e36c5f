"""The deployment of one MAP: `GURNEY_MIS_*` environment variables. `docs/migrate/mis.md` tells them."""

from posixpath import basename, isabs, normpath
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from gurney.client.http import Json
from gurney.facade import FacadeSettings
from gurney.settings import MIB

#: Where the generations expect what is said nowhere.
INPUT, OUTPUT, MODELS = "/var/monai/input", "/var/monai/output", "/opt/monai/models"


def _absolute(path: str) -> str:
    if not isabs(path) or normpath(path) in {"/", "//"} or "\0" in path or ":" in path:
        raise ValueError("must be an absolute path, not the root, without a colon")
    return normpath(path)


def _program(line: str) -> str:
    if not line.split():
        raise ValueError("must name a program")
    return line


Folder = Annotated[str, AfterValidator(_absolute)]


class MisSettings(FacadeSettings):
    """What a deployment says. Durations in seconds, memory in MiB."""

    model_config = SettingsConfigDict(
        env_prefix="GURNEY_MIS_", frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    map_urn: str = Field(min_length=1, max_length=1024)
    """The MAP, as it is registered."""
    map_entrypoint: Annotated[str, AfterValidator(_program)] | None = None
    """What its container runs, split on spaces; None: what the MAP says."""
    map_cpu: int = Field(default=1, ge=1)
    """Cores of a request."""
    map_memory: int = Field(default=8192, ge=256)
    """MiB of a request."""
    map_gpu: int = Field(default=0, ge=0)
    """GPUs of a request."""
    map_input_path: Folder | None = None
    """Folder of the input in the container; None: what the MAP says."""
    map_output_path: Folder | None = None
    """Folder of the output; its last part is the folder of the results in the answer."""
    map_model_path: Folder | None = None
    """Folder of the models, which the application is told."""
    timeout: float = Field(default=50.0, gt=0, le=86_400)
    """Seconds that a request may take."""
    host: str = "127.0.0.1"
    """Address on which it listens."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port on which it listens; 0 takes a free one."""
    base_path: str = Field(default="", pattern=r"^(/[A-Za-z0-9._~-]+)*$")
    """What stands before `/upload/` and `/docs`."""

    @property
    def description(self) -> Json | None:
        """What is said of the MAP that counts instead of its manifests; None: they count."""
        said = (self.map_entrypoint, self.map_input_path, self.map_output_path, self.map_model_path)
        if not any(said):
            return None
        models = self.map_model_path or MODELS
        described: Json = {
            "input_path": self.map_input_path or INPUT,
            "output_path": self.map_output_path or OUTPUT,
            "environment": {"MONAI_MODELPATH": models, "HOLOSCAN_MODEL_PATH": models},
        }
        return described | ({"command": self.map_entrypoint.split()} if self.map_entrypoint else {})

    @property
    def options(self) -> Json:
        """What each run asks. It waits for room: that is part of its time."""
        resources = {"cpu": self.map_cpu, "memory": self.map_memory * MIB, "gpus": self.map_gpu}
        return {**resources, "timeout_s": self.timeout, "admission": "queue"}


def folder_of(path: str) -> str:
    """Return the folder of the results in the answer: the last part of the output's path."""
    return basename(normpath(path))
