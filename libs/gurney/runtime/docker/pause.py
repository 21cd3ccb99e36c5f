"""Network namespaces without a network, made ahead: a run that gets one starts in half the time.

Setting a namespace up is the largest part of a container's start. So a container that does nothing holds one open, and
a run joins it (`NetworkMode=container:...`). Each is lent to one run at a time, and only to runs of one project, so
runs share nothing; when the run has ended, no process is left in it. The program of these containers is made here, byte
by byte: nothing has to be pulled.
"""

import contextlib
import io
import os
import struct
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any

from gurney import telemetry
from gurney.errors import GurneyError
from gurney.runtime.docker.daemon import Client, Daemon, Refused
from gurney.runtime.docker.house import PREFIX, House

IMAGE = "gurney-pause:1"
LABEL = "gurney.pause"
#: How many are kept that nobody uses.
IDLE = 32

_log = telemetry.log("agent")

_BASE = 0x400000
_HEAD = 64 + 56
#: Machine code of `for (;;) pause();` by architecture, with its number in ELF.
_CODE: dict[str, tuple[int, bytes]] = {
    "amd64": (62, bytes.fromhex("b8220000000f05ebf7")),
    # ppoll(NULL, 0, NULL, NULL), for there is no pause
    "arm64": (
        183,
        struct.pack("<7I", 0xD2800928, 0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003, 0xD4000001, 0x17FFFFFA),
    ),
}


def program(architecture: str) -> bytes | None:
    """Return an executable that waits for ever; None for architectures that nobody has written it for."""
    if architecture not in _CODE:
        return None
    machine, code = _CODE[architecture]
    size = _HEAD + len(code)
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, _BASE + _HEAD, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return head + struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000) + code


class Pauses:
    """The namespaces of one house."""

    def __init__(self, daemon: Daemon, house: House) -> None:
        self._daemon = daemon
        self._house = house
        #: By project.
        self._idle: dict[str, list[str]] = {}
        #: In use by runs, or about to be.
        self._lent: set[str] = set()
        self._is_possible = False

    async def settle(self, summaries: Iterable[Mapping[str, Any]], used: set[str]) -> list[str]:
        """Take stock after a connect; returns those that are of no more use. `used`: the runs that live have them."""
        self._idle.clear()
        self._lent |= used
        useless: list[str] = []
        for each in summaries:
            if each["State"] == "running":
                if each["Id"] not in self._lent:
                    self._idle.setdefault(each["Labels"].get("gurney.project", ""), []).append(each["Id"])
            else:
                useless.append(each["Id"])
        architecture = self._daemon.version.get("Arch", "")
        self._is_possible = await self._daemon.slow(lambda client: provide_image(client, architecture))
        return useless

    async def take(self, project: str) -> str:
        """Return a namespace's container, empty where there can be none."""
        idle = self._idle.get(project)
        taken = idle.pop() if idle else await self._another(project)
        if taken:
            self._lent.add(taken)
        return taken

    async def _another(self, project: str) -> str:
        if not self._is_possible:
            return ""
        try:
            return await self._daemon.quick(lambda client: self._make(client, project))
        except Refused as error:
            _log.warning("no network namespace can be made ahead", error=error)
            return ""

    async def give(self, project: str, container: str) -> None:
        """Give one back in which no process is left."""
        if container not in self._lent:
            return
        self._lent.discard(container)
        if sum(map(len, self._idle.values())) < IDLE:
            self._idle.setdefault(project, []).append(container)
        else:
            with contextlib.suppress(GurneyError):
                await self._daemon.slow(lambda client: client.remove_container(container, force=True))

    def gone(self, container: str) -> None:
        """Note that one is no more."""
        self._lent.discard(container)
        for idle in self._idle.values():
            if container in idle:
                idle.remove(container)

    def _make(self, client: Client, project: str) -> str:
        labels = {**self._house.labels, LABEL: "1", "gurney.project": project}
        made = client.make({**body(), "Labels": labels}, f"{PREFIX}pause-{os.urandom(8).hex()}")
        try:
            client.start(made)
        except BaseException:
            client.remove_container(made, force=True)
            raise
        return made


def body(**host: Any) -> dict[str, Any]:
    """Return what is created of a container that does nothing; `host`: more for the host configuration."""
    return {
        "Image": IMAGE,
        "HostConfig": {
            "NetworkMode": "none",
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "PidsLimit": 4,
            "Memory": 16 << 20,
            "LogConfig": {"Type": "none"},
            **host,
        },
    }


def provide_image(client: Client, architecture: str) -> bool:
    """Have the image of these containers; False where there is none for the architecture. Blocks."""
    wanted = program(architecture)
    if wanted is None:
        return False
    if client.image(IMAGE) is None:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            entry = tarfile.TarInfo("pause")
            entry.size, entry.mode = len(wanted), 0o755
            tar.addfile(entry, io.BytesIO(wanted))
        name, _, tag = IMAGE.partition(":")
        client.import_image_from_data(
            archive.getvalue(), name, tag, changes=['ENTRYPOINT ["/pause"]', "USER 65534:65534"]
        )
    return True
