"""One server as `compose/` runs it, under a project, a folder and ports of its own."""

import json
import os
import ssl
import subprocess
from contextlib import closing
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any, Self

from gurney.runtime.docker.house import House
from gurney.testing.child import free_port
from gurney.testing.tools import tool

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"
#: A loaded machine makes all images and starts all containers within it.
PATIENCE_S = 420
FAULTS = 400
PRIVATE = "SITE_INFERENCE_SERVER_PRIVATE_PORT"
VERSION_2 = "SITE_INFERENCE_SERVER_V2_PORT"
PORTS = ("SITE_PORT", "SITE_JAEGER_PORT", "SITE_PROMETHEUS_PORT", PRIVATE, VERSION_2)

Json = dict[str, Any]


def sh(*command: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository's root; `more` is added to the environment."""
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | more, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def done(result: subprocess.CompletedProcess[str]) -> str:
    """Return what a command has printed; fail with what it said where it failed."""
    assert result.returncode == 0, f"{result.args}: {result.stderr[-4000:]}"
    return result.stdout


class OneServer:
    """A context: at its end nothing is left of it but its folder. Methods block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "env"
        self.data = folder / "data"
        self.project = f"gurney-test-{os.getpid()}"
        compose = tool("compose")
        assert compose is not None
        plugins = folder / "docker" / "cli-plugins"
        plugins.mkdir(parents=True)
        (plugins / "docker-compose").symlink_to(compose)
        self.environment = {"SITE_ENV": str(self.file), "DOCKER_CONFIG": str(plugins.parent)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        sh(COMPOSE / "reset", "all", "--yes", "--stopped", **self.environment)
        sh("docker", "run", "--rm", "--user=0:0", "--network=none", f"--volume={self.folder}:/folder",
           "--entrypoint=python", "gurney", "-Ic", "import shutil; shutil.rmtree('/folder/data')")  # fmt: skip

    def setup(self, *options: str) -> subprocess.CompletedProcess[str]:
        return sh(COMPOSE / "setup", *options, **self.environment)

    def configure(self, **values: str) -> None:
        """Change lines of its settings, or add some."""
        kept = [line for line in self.file.read_text().splitlines() if line.partition("=")[0] not in values]
        self.file.write_text("".join(f"{line}\n" for line in [*kept, *(f"{k}={v}" for k, v in values.items())]))

    def prepare(self, **more: str) -> Self:
        """Set it up with free ports, and further settings."""
        done(self.setup("--host", "localhost", "--data", str(self.data)))
        ports = {name: str(free_port()) for name in PORTS}
        self.use("compose.yaml")
        self.configure(COMPOSE_PROJECT_NAME=self.project, SITE_WEBHOOK_PRIVATE="all", SITE_BIND="127.0.0.1", **ports)
        self.configure(**more)
        return self

    def use(self, *files: str) -> None:
        """Say which files of `compose/` make it up."""
        self.configure(COMPOSE_FILE=os.pathsep.join(str(COMPOSE / file) for file in files))

    def compose(self, *command: str) -> subprocess.CompletedProcess[str]:
        return sh("docker", "compose", "--env-file", self.file, *command, **self.environment)

    def up(self) -> Self:
        """Start what does not run; return when all of it is healthy."""
        result = self.compose("up", "--detach", "--wait")
        logs = "" if result.returncode == 0 else self.compose("logs", "--tail", "20").stdout
        assert result.returncode == 0, f"{result.stderr[-2000:]}{logs}"
        return self

    def reset(self, what: str, *options: str) -> str:
        return done(sh(COMPOSE / "reset", what, "--yes", *options, **self.environment))

    def runs(self) -> list[str]:
        """Return the containers that its agent has made."""
        label = f"label=gurney.house={House('localhost', self.data / 'agent').id}"
        return done(sh("docker", "ps", "--all", "--quiet", "--filter", label)).split()

    def containers(self) -> list[Json]:
        """Return what Docker says of each of its containers that runs."""
        ids = done(self.compose("ps", "--quiet")).split()
        found: list[Json] = json.loads(done(sh("docker", "inspect", *ids)))
        return found

    def port(self, name: str) -> int:
        return int(
            next(line for line in self.file.read_text().splitlines() if line.startswith(f"{name}="))[len(name) + 1 :]
        )

    @property
    def address(self) -> str:
        """Return this host's address as the notifier reaches it."""
        network = ["docker", "network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}"]
        return done(sh(*network, f"{self.project}_host")).strip()

    @property
    def token(self) -> str:
        """Return the administrator's token."""
        return (self.data / "secrets" / "gurney_admin_token").read_text().strip()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port('SITE_PORT')}"

    def fetch(
        self, method: str, path: str, body: bytes | None = None, *, port: str = "SITE_PORT", **headers: str
    ) -> tuple[int, str, bytes]:
        """Return status, content type and body of an answer over TLS; only this server's certificate is trusted."""
        trust = ssl.create_default_context(cafile=self.data / "tls.crt")
        with closing(HTTPSConnection("localhost", self.port(port), timeout=90, context=trust)) as connection:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheader("Content-Type", ""), answer.read()

    def ask(self, method: str, path: str, body: Json | bytes | None = None) -> Any:
        """Return what the API answers to the administrator."""
        headers = {"Authorization": f"Bearer {self.token}"}
        if isinstance(body, dict):
            headers["Content-Type"], body = "application/json", json.dumps(body).encode()
        status, said, text = self.fetch(method, path, body, **headers)
        assert status < FAULTS, (method, path, status, text)
        return json.loads(text) if said.startswith("application/json") else text

    def tells(self, port: str, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Any:
        """Return what is said on this host's loopback address: by Jaeger, Prometheus or a private listener."""
        with closing(HTTPConnection("127.0.0.1", self.port(port), timeout=90)) as connection:
            connection.request(method, path, body, headers)
            return json.load(connection.getresponse())
