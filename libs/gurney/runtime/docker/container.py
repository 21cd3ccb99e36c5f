"""What the container of a run is and may: one body for the daemon's create. Pure."""

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from gurney.errors import Invalid
from gurney.paths import holds
from gurney.runtime.docker.house import silenced
from gurney.runtime.environment import Places, image_defaults, run_variables
from gurney.runtime.port import RunSpec

MIB = 1 << 20
SHARED_MEMORY = 64 * MIB
PROCESSES = 4096
NO_GPU = "void"
_LEAST_CPU = 0.01
_LEAST_MEMORY = 6 * MIB
#: What the daemon keeps of a run's output until the run is forgotten; we have it all in a file of our own.
_LOG_OPTIONS = {"max-size": "256m", "max-file": "2", "compress": "false"}
#: What even an application that needs the daemon's default capabilities has no use for.
COMPATIBLE_DROPS = frozenset({"NET_RAW", "MKNOD", "AUDIT_WRITE", "SYS_CHROOT", "NET_BIND_SERVICE"})
_WORK = {"monai": "/var/monai"}
#: Where the packager of the Holoscan generation says that logs go: its images let their user write there.
_LOGS = "/var/holoscan/logs"
_TEMPORARY = "/tmp"  # noqa: S108  the container's own
_IN_MEMORY = "rw,exec,nosuid,nodev,mode=1777"


@dataclass(frozen=True, slots=True)
class Image:
    """What has to be known of an image before it runs."""

    id: str
    #: As the image has it; empty: root.
    user: str
    uid: int
    gid: int
    working_directory: str
    #: Names of the variables that it sets.
    variables: frozenset[str] = frozenset()
    #: Names of its labels.
    labels: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Means:
    """What the host gives to the run."""

    #: As the daemon has it: a network, `container:` and the one whose namespace the run gets, or `none`.
    network: str
    #: Cores of the host: more cannot be asked for.
    cores: float
    #: The container runs as this user; None: as the image's.
    user: str | None
    labels: Mapping[str, str]


def config(spec: RunSpec, image: Image, means: Means) -> dict[str, Any]:
    """Return the body of the create; `Invalid` where the manifest asks for what cannot be."""
    _check_paths(spec, image)
    given: dict[str, Any] = {
        "Image": image.id,
        "Entrypoint": list(spec.command),
        "Cmd": [],
        "Env": [f"{name}={value}" for name, value in environment(spec, image).items()],
        "Labels": {
            **silenced(image.labels),
            **means.labels,
            "gurney.run": spec.run_id,
            "gurney.job": spec.job_id,
            "gurney.project": spec.project,
        },
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": _host_config(spec, image, means),
    }
    if spec.working_directory:
        given["WorkingDir"] = spec.working_directory
    if means.user is not None:
        given["User"] = means.user
    return given


def environment(spec: RunSpec, image: Image) -> dict[str, str]:
    """Return what is laid over the image's environment."""
    return {
        "TMPDIR": _TEMPORARY,
        **image_defaults(spec.generation, image.variables),
        **run_variables(spec, Places(spec.input_path, spec.output_path, _work(spec, image), spec.content_path)),
        "CUDA_VISIBLE_DEVICES": ",".join(spec.gpus),
        # Where the NVIDIA runtime is the daemon's default, an image may ask for all GPUs of the host.
        "NVIDIA_VISIBLE_DEVICES": NO_GPU if spec.gpus_simulated else ",".join(spec.gpus) or NO_GPU,
    }


def sealed(*, memory: int, cores: float) -> dict[str, Any]:
    """Return what nothing of an image may go beyond unless somebody asked for it: no network, no rights, limits.

    `memory` in bytes; 0: no limit.
    """
    return {
        "NetworkMode": "none",
        # Signals reach an application that is not the first process of its container, and orphans are reaped.
        "Init": True,
        "ReadonlyRootfs": True,
        "Tmpfs": {_TEMPORARY: _IN_MEMORY},
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "PidsLimit": PROCESSES,
        "ShmSize": SHARED_MEMORY,
        "NanoCpus": int(cores * 1e9),
        "Memory": memory,
        "MemorySwap": memory,  # memory and swap together: no swap
        "IpcMode": "private",
        "OomScoreAdj": 500,  # where the host runs out of memory, an application goes, not the server
        "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
        "RestartPolicy": {"Name": "no"},
        "LogConfig": {"Type": "none"},
    }


def _work(spec: RunSpec, image: Image) -> str:
    """Return the application's folder."""
    return spec.working_directory or image.working_directory or _WORK.get(spec.generation, "/var/holoscan")


def _in_memory(spec: RunSpec, image: Image) -> dict[str, str]:
    """Return the folders that the run may write and that go with it."""
    folders = [_TEMPORARY]
    if spec.generation == "monai":  # whose SDK gives each operator of an application a folder below this one
        folders.append(posixpath.join(_work(spec, image), "operators"))
    if spec.generation == "holoscan":
        folders.append(_LOGS)
    mounted = {posixpath.normpath(each["Target"]) for each in _mounts(spec)}
    return {folder: _IN_MEMORY for folder in folders if posixpath.normpath(folder) not in mounted}


def _host_config(spec: RunSpec, image: Image, means: Means) -> dict[str, Any]:
    memory = max(spec.memory, _LEAST_MEMORY) if spec.memory else 0
    given = sealed(memory=memory, cores=min(max(spec.cpu, _LEAST_CPU), means.cores)) | {
        "NetworkMode": means.network,
        "Tmpfs": _in_memory(spec, image),
        "Mounts": list(_mounts(spec)),
        "ShmSize": spec.shared_memory or SHARED_MEMORY,
        "LogConfig": {"Type": "local", "Config": _LOG_OPTIONS},
    }
    if spec.hardening != "strict":
        given |= {"ReadonlyRootfs": False, "CapDrop": sorted(COMPATIBLE_DROPS)}
    if spec.gpus and not spec.gpus_simulated:
        given["DeviceRequests"] = [{"DeviceIDs": list(spec.gpus), "Capabilities": [["gpu"]]}]
    return given


def _mounts(spec: RunSpec) -> Iterator[dict[str, Any]]:
    yield _bind(str(spec.input_dir), spec.input_path, read_only=True)
    yield _bind(str(spec.output_dir), spec.output_path, read_only=False)
    if spec.content_path is not None:
        yield _bind(str(spec.content_dir), spec.content_path, read_only=True)


def _bind(source: str, target: str, *, read_only: bool) -> dict[str, Any]:
    return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": read_only}


def _check_paths(spec: RunSpec, image: Image) -> None:
    """Refuse a mount that would hide the application, or another mount."""
    paths = {"input": spec.input_path, "output": spec.output_path}
    if spec.content_path is not None:
        paths["content"] = spec.content_path
    work = spec.working_directory or image.working_directory
    for name, path in paths.items():
        if not posixpath.isabs(path):
            raise Invalid.field(f"{name}_path", f"{path!r} is not an absolute path")
        if holds(path, "/") or (work and work != "/" and holds(path, work)):
            raise Invalid.field(f"{name}_path", f"{path!r} would hide the working directory of the application")
    for (outer, path), (inner, other) in permutations(paths.items(), 2):
        if holds(path, other):
            raise Invalid.field(f"{inner}_path", f"{inner} and {outer} lie within each other")
