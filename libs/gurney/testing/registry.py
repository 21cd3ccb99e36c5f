"""A real image registry for tests, on a free loopback port, gone with its owner."""

import base64
import json
from pathlib import Path
from urllib.request import Request, urlopen

from gurney.runtime.docker.daemon import Client
from gurney.testing.child import Child, answers, free_port
from gurney.testing.tools import provided

READY_WITHIN_S = 20.0
USER = "reader"
#: Throw-away passwords and their bcrypt hashes: nothing at hand makes one.
PASSWORDS = {
    "correct-horse-one": "$2b$04$lkwEIdR0CUDP5/dI1kSwleFsaQ0mM8owhkhLRPoMD1Buzk2Oh/G9u",
    "correct-horse-two": "$2b$04$YbNQhajffUlzarR5UABzlOan831mZcYf4tlFNdiT1ynL8vG/bo1/2",
}
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class Registry(Child):
    """One registry over one folder. Images are pushed to and pulled from `<address>/<name>`, without TLS."""

    def __init__(self, folder: Path, password: str | None = None) -> None:
        """`password`, one of `PASSWORDS`: of `USER`, who alone gets in; None: everybody does."""
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.password = password
        self._users = folder / "htpasswd"
        configuration = folder / "config.yml"
        configuration.write_text(
            "version: 0.1\nlog: {level: warn}\n"
            f"storage: {{filesystem: {{rootdirectory: '{folder}/images'}}, delete: {{enabled: true}}}}\n"
            f"http: {{addr: '{self.address}'}}\n"
            + (f"auth: {{htpasswd: {{realm: test, path: '{self._users}'}}}}\n" if password else "")
        )
        if password:
            self.let_in(password)
        super().__init__([provided("registry"), "serve", configuration], folder / "log")

    @property
    def address(self) -> str:
        """Host and port, the first part of its images' references."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> "Registry":
        """Start it, and return when it answers."""
        super().start()
        return self.until(lambda: answers(f"http://{self.address}/"), READY_WITHIN_S)

    def let_in(self, password: str) -> None:
        """Change the password of the user, from now on."""
        self.password = password
        self._users.write_text(f"{USER}:{PASSWORDS[password]}\n")

    def log_in(self, configuration: Path, password: str) -> None:
        """Keep a password for this registry in a Docker client configuration, as `docker login` does."""
        draft = configuration.with_suffix(".tmp")
        draft.write_text(json.dumps({"auths": {self.address: {"auth": encoded(password)}}}))
        draft.replace(configuration)

    def push(self, client: Client, image: str, name: str, tag: str = "1") -> str:
        """Put an image that the daemon has into the registry; returns its reference there."""
        repository = f"{self.address}/{name}"
        client.tag(image, repository, tag)
        credentials = {"username": USER, "password": self.password or ""}
        for line in client.push(repository, tag=tag, stream=True, decode=True, auth_config=credentials):
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


def encoded(password: str) -> str:
    """Return user and password as they go over the wire."""
    return base64.b64encode(f"{USER}:{password}".encode()).decode()
