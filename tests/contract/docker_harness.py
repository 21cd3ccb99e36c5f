"""The Docker runtime in the contract suite: over a daemon of our own that may be killed, with an image of busybox."""

import asyncio
import json
from pathlib import Path

from gurney.runtime.docker.runtime import DockerRuntime
from gurney.runtime.port import Runtime
from gurney.testing.docker import DockerDaemon, make_image
from tests.contract.runtime_harness import GRACE_S

APP = "gurney-test/app:1"
#: A user without a name, so that what it writes shows who owns the output.
CHANGES = ("USER 1234:1234", "WORKDIR /opt/app", "ENV PATH=/usr/bin:/bin")
FILES = {
    "etc/holoscan/app.json": json.dumps(
        {"command": "./run", "input": {"path": "input/"}, "output": {"path": "output/"}}
    ),
    "etc/holoscan/pkg.json": "{}",
    "opt/app/plain": "echo not executable\n",
}


def make_app(daemon: DockerDaemon) -> None:
    """Make the image that all tests of the suite run."""
    client = daemon.client()
    try:
        make_image(client, APP, FILES, CHANGES)
    finally:
        client.close()


class DockerHarness:
    """The Docker runtime with the image `APP`."""

    urn = f"urn:oci:{APP}"
    input_path, output_path = "/var/holoscan/input", "/var/holoscan/output"
    keeps_order_of_streams = False
    sees_short_peaks = False
    has_gpus = False
    pace = 4.0

    def __init__(self, base: Path, daemon: DockerDaemon, missing: str) -> None:
        self.base = base
        self.data = base / "data"
        self.daemon = daemon
        self.missing_urn = f"urn:oci:{missing}"
        self.runtime: Runtime = self.make()

    def make(self) -> DockerRuntime:
        return DockerRuntime(self.data, node="n1", url=self.daemon.url, grace_s=GRACE_S)

    async def open(self) -> None:
        await self.runtime.open()

    async def reopen(self) -> None:
        await self.runtime.close()
        self.runtime = self.make()
        await self.runtime.open()

    async def crash(self) -> None:
        await asyncio.to_thread(self.daemon.kill)
        await asyncio.to_thread(self.daemon.start)

    async def finish(self) -> None:
        await self.runtime.close()
        await asyncio.to_thread(self.daemon.clean)
