"""A real image registry for tests, on a free loopback port, gone with its owner."""

import contextlib
import http.client
from pathlib import Path

from gurney.runtime.docker.daemon import Client
from gurney.testing.child import Child, free_port
from gurney.testing.tools import tool

READY_WITHIN_S = 20.0


class Registry(Child):
    """One registry over one folder. Images are pushed to and pulled from `<address>/<name>`, without TLS."""

    def __init__(self, folder: Path) -> None:
        program = tool("registry")
        if program is None:
            raise FileNotFoundError("registry: scripts/tools registry provides it")
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        configuration = folder / "config.yml"
        configuration.write_text(
            "version: 0.1\nlog: {level: warn}\n"
            f"storage: {{filesystem: {{rootdirectory: '{folder}/images'}}, delete: {{enabled: true}}}}\n"
            f"http: {{addr: '{self.address}'}}\n"
        )
        super().__init__([program, "serve", configuration], folder / "log")

    @property
    def address(self) -> str:
        """Host and port, the first part of its images' references."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> "Registry":
        """Start it, and return when it answers."""
        super().start()
        return self.until(self._answers, READY_WITHIN_S)

    def push(self, client: Client, image: str, name: str, tag: str = "1") -> str:
        """Put an image that the daemon has into the registry; returns its reference there."""
        repository = f"{self.address}/{name}"
        client.tag(image, repository, tag)
        for line in client.push(repository, tag=tag, stream=True, decode=True):
            if "error" in line:
                raise RuntimeError(line["error"])
        return f"{repository}:{tag}"

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/v2/")
            return connection.getresponse().status == http.client.OK
        return False
