"""What those see who watch over a façade's process, as over a service's."""

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gurney.testing.child import Child, answers, free_port, freeze
from gurney.testing.embedded import EmbeddedProcess
from tests.e2e.inference_server import GURNEY

READY_WITHIN_S = 60
#: What each is told to start.
ENVIRONMENT = {
    "mis": {"GURNEY_MIS_MAP_URN": "urn:gurney:dir:shell", "GURNEY_MIS_PORT": "0"},
    "inference-server": {"GURNEY_INFERENCE_SERVER_LISTENERS": "public", "GURNEY_INFERENCE_SERVER_PUBLIC_PORT": "0"},
}
PARTS = {"mis": {"gurney"}, "inference-server": {"gurney", "documents"}}

pytestmark = [pytest.mark.timeout(240), pytest.mark.embedded]


class Watched:
    """A façade, and what it tells on the port for those who watch."""

    def __init__(self, name: str, server: EmbeddedProcess, folder: Path) -> None:
        port = free_port()
        prefix = f"GURNEY_{name.upper().replace('-', '_')}"
        environment = ENVIRONMENT[name] | {
            f"{prefix}_SERVER": server.url,
            f"{prefix}_TOKEN": server.token,
            "GURNEY_INFERENCE_SERVER_DATA": str(folder / name),
            "GURNEY_METRICS_PORT": str(port),
        }
        self.name = name
        self.child = Child([GURNEY, "serve", name], folder / f"{name}.log", environment)
        self._url = f"http://127.0.0.1:{port}"

    def start(self) -> None:
        self.child.start().until(self.lives, READY_WITHIN_S)

    def lives(self) -> bool:
        return answers(f"{self._url}/livez")

    def ready(self) -> tuple[int, Any]:
        """Return the status of `/readyz`, and the parts that it names."""
        try:
            with urllib.request.urlopen(f"{self._url}/readyz", timeout=10) as answer:  # noqa: S310  # our own, of http
                return answer.status, json.load(answer)["parts"]
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["parts"]

    def until(self, status: int) -> Any:
        """Return the parts, once `/readyz` has a status."""
        self.child.until(lambda: self.ready()[0] == status, READY_WITHIN_S)
        return self.ready()[1]

    def metrics(self) -> str:
        with urllib.request.urlopen(f"{self._url}/metrics", timeout=10) as answer:  # noqa: S310
            return str(answer.read().decode())


@pytest.fixture(params=["mis", "inference-server"])
def watched(request: pytest.FixtureRequest, own_server: EmbeddedProcess, tmp_path: Path) -> Iterator[Watched]:
    """A façade that does not run yet, of a server that may be frozen."""
    found = Watched(request.param, own_server, tmp_path)
    try:
        yield found
    finally:
        found.child.stop()
        os.kill(own_server.pid, signal.SIGCONT)


@pytest.mark.req("MIS-11")
def test_a_facade_is_ready_while_gurney_answers(watched: Watched, own_server: EmbeddedProcess) -> None:
    """It lives from its start on, and is ready once it serves and for as long as all that it stands on is there."""
    freeze(own_server.pid)
    watched.start()
    assert watched.ready() == (503, {watched.name: "starts"})
    os.kill(own_server.pid, signal.SIGCONT)
    assert watched.until(200) == dict.fromkeys(PARTS[watched.name] | {watched.name}, "ready")
    assert "gurney_http_requests_total" in watched.metrics()
    freeze(own_server.pid)
    assert watched.until(503) == dict.fromkeys(PARTS[watched.name] | {watched.name}, "ready") | {"gurney": "away"}
    assert watched.lives()
    os.kill(own_server.pid, signal.SIGCONT)
    watched.until(200)


def test_a_facade_that_waits_for_gurney_ends_when_asked(watched: Watched, own_server: EmbeddedProcess) -> None:
    """SIGTERM ends it by 0 while it waits for an answer at its start."""
    freeze(own_server.pid)
    watched.start()
    assert watched.child.stop() == 0
    assert "Traceback" not in watched.child.log.read_text()
