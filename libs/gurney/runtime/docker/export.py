"""Asks an image for its manifests that lie nowhere where we look: its own program is run, once, to export them.

This is code of the image that runs before anybody has approved it. So it is given less than a run: no network, no
rights, nothing to write but a little memory, and a minute; when that is over it is killed. What it exports lies in
memory that a container of ours has, which does nothing else: it is read out of that, so that no link leads anywhere,
and goes with it.
"""

import io
import tarfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from docker.errors import APIError

from gurney import clock
from gurney.errors import MapUnreadable
from gurney.runtime.docker import manifests, pause
from gurney.runtime.docker.container import MIB, NO_GPU, sealed
from gurney.runtime.docker.daemon import Client, one_line
from gurney.runtime.docker.house import silenced
from gurney.runtime.docker.reading import Readers, user_of

#: Seconds that an export may take.
TIMEOUT_S = 60.0
_LOOK_S = 0.05
_MEMORY = 256 * MIB
_SPACE, _FILES = 1 * MIB, 64
_NONE = f"the image has no app.json in {' or '.join(manifests.FOLDERS)}"


@dataclass(frozen=True, slots=True)
class Way:
    """How images of a generation export."""

    #: What the image's variables begin with.
    prefix: str
    #: Where the folder is mounted into which it exports.
    mount: str
    arguments: tuple[str, ...]
    #: Where its manifests are then. What is below the mount is made beforehand: then nothing but manifests is exported,
    #: no models.
    folders: tuple[str, ...]


HOLOSCAN = Way("HOLOSCAN_", "/var/run/holoscan/export", ("extract",), ("/config", ""))
MONAI = Way("MONAI_", "/var/run/monai/export/config", (), ("",))


def way_of(environment: Iterable[str]) -> Way | None:
    """Tell by the image's variables (`NAME=value`) how it exports; None where they tell nothing."""
    names = [each.partition("=")[0] for each in environment]
    return next((way for way in (HOLOSCAN, MONAI) if any(name.startswith(way.prefix) for name in names)), None)


def export(client: Client, readers: Readers, image: Mapping[str, Any], reader: str) -> dict[str, bytes]:
    """Return path -> content of the manifests that the image exports; `reader` is its container that is never run.

    Nothing is run of an image that does not tell how, or has no program. Raises `MapUnreadable` where it does not end
    by itself, exports nothing or too much. Blocks, for a minute at most.
    """
    config = image.get("Config") or {}
    way = way_of(config.get("Env") or ())
    has_program = bool(config.get("Entrypoint") or config.get("Cmd"))
    if way is None or not has_program or not pause.provide_image(client, client.version()["Arch"]):
        raise MapUnreadable("manifest_missing", _NONE)
    uid, gid = user_of(client, reader, config.get("User") or "")
    with readers.made(client, pause.body(Mounts=[_memory(way.mount, uid, gid, readers.labels)])) as holder:
        client.start(holder)
        client.put_archive(holder, way.mount, _folders(way, uid, gid))
        with readers.made(client, _body(image, way, reader, holder)) as exporter:
            ended = _run(client, exporter, way)
        found = manifests.read(client, holder, [f"{way.mount}{folder}" for folder in way.folders])
    if not found:
        raise MapUnreadable("manifest_missing", f"{_NONE}, and exported none to {way.mount}: {ended}")
    return found


def _run(client: Client, exporter: str, way: Way) -> str:
    """Run it to its end, and return how that was; raises `MapUnreadable` where it does not come."""
    try:
        client.start(exporter)
    except APIError as error:
        return one_line(error.explanation or error)
    deadline = clock.monotonic() + TIMEOUT_S
    while (state := client.inspect_container(exporter)["State"])["Running"]:
        if clock.monotonic() > deadline:
            text = f"{_NONE}, and its export to {way.mount} took over {TIMEOUT_S:g} s"
            raise MapUnreadable("manifest_missing", text)
        time.sleep(_LOOK_S)
    return f"exit code {state['ExitCode']}"


def _body(image: Mapping[str, Any], way: Way, reader: str, holder: str) -> dict[str, Any]:
    given: dict[str, Any] = {
        "Image": image["Id"],
        "Labels": silenced((image.get("Config") or {}).get("Labels") or ()),
        "Env": ["CUDA_VISIBLE_DEVICES=", f"NVIDIA_VISIBLE_DEVICES={NO_GPU}"],
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": sealed(memory=_MEMORY, cores=1.0)
        | {
            "PidsLimit": 128,
            # The volumes that the image declares are where it could fill the disk of the host.
            "VolumesFrom": [f"{reader}:ro", holder],
        },
    }
    return given | {"Cmd": list(way.arguments)} if way.arguments else given


def _memory(mount: str, uid: int, gid: int, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return a volume without a name, which goes with its container."""
    options = f"size={_SPACE},nr_inodes={_FILES},mode=0700,uid={uid},gid={gid},nosuid,nodev,noexec"
    driver = {"Name": "local", "Options": {"type": "tmpfs", "device": "tmpfs", "o": options}}
    volume = {"NoCopy": True, "DriverConfig": driver, "Labels": dict(labels)}
    return {"Type": "volume", "Target": mount, "VolumeOptions": volume}


def _folders(way: Way, uid: int, gid: int) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for folder in filter(None, way.folders):
            entry = tarfile.TarInfo(folder.lstrip("/"))
            entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, 0o700, uid, gid
            tar.addfile(entry)
    return archive.getvalue()
