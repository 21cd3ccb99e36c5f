"""A real image registry for tests, on a free loopback port, gone with its owner."""

import json
from pathlib import Path
from urllib.request import Request, urlopen

from gurney.runtime.docker.daemon import Client
from gurney.testing.child import Child, answers, free_port
from gurney.testing.tools import provided

READY_WITHIN_S = 20.0
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class Registry(Child):
    """One registry over one folder. Images are pushed to and pulled from `<address>/<name>`, without TLS."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        configuration = folder / "config.yml"
        configuration.write_text(
            "version: 0.1\nlog: {level: warn}\n"
            f"storage: {{filesystem: {{rootdirectory: '{folder}/images'}}, delete: {{enabled: true}}}}\n"
            f"http: {{addr: '{self.address}'}}\n"
        )
        super().__init__([provided("registry"), "serve", configuration], folder / "log")

    @property
    def address(self) -> str:
        """Host and port, the first part of its images' references."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> "Registry":
        """Start it, and return when it answers."""
        super().start()
        return self.until(lambda: answers(f"http://{self.address}/v2/"), READY_WITHIN_S)

    def push(self, client: Client, image: str, name: str, tag: str = "1") -> str:
        """Put an image that the daemon has into the registry; returns its reference there."""
        repository = f"{self.address}/{name}"
        client.tag(image, repository, tag)
        for line in client.push(repository, tag=tag, stream=True, decode=True):
            if "error" in line:
                raise RuntimeError(line["error"])
        return f"{repository}:{tag}"

    def remove(self, name: str, reference: str) -> None:
        """Remove an image, with its layers: a daemon may remember the manifest of an image that it had a moment ago."""
        manifest = f"{name}/manifests/{reference.partition('@')[2]}"
        layers = [layer["digest"] for layer in json.loads(self._ask("GET", manifest))["layers"]]
        for path in (manifest, *(f"{name}/blobs/{layer}" for layer in layers)):
            self._ask("DELETE", path)

    def _ask(self, method: str, path: str) -> bytes:
        asked = Request(f"http://{self.address}/v2/{path}", method=method, headers={"Accept": MANIFEST})
        with urlopen(asked) as answer:  # noqa: S310 - our own, of http
            return bytes(answer.read())
