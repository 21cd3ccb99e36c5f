"""`gurney serve`: processes of one service each, that wait for what they stand on and say what is wrong."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from gurney.testing.child import Child, free_port
from gurney.testing.nats import NatsServer

GURNEY = Path(sys.executable).parent / "gurney"
READY_WITHIN_S = 30.0
#: Exit codes of sysexits.h.
TEMPORARY, CONFIGURATION = 75, 78

RIGHT = {"GURNEY_NATS_USER": "job", "GURNEY_NATS_PASSWORD": "right"}

pytestmark = pytest.mark.timeout(120)


def settings_of(server: NatsServer, folder: Path, **more: str) -> dict[str, str]:
    return {"GURNEY_NATS_URL": server.url, "GURNEY_DATA": str(folder / "data"), "GURNEY_RUN_SECRET": "x", **more}


def last_line(service: str, environment: dict[str, str], *options: str) -> tuple[int, str]:
    """Return the exit code of a service that cannot start, and the line that says why: no other is for people."""
    command = [str(GURNEY), "serve", service, *options]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    lines = [line for line in told.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, told.stderr
    return told.returncode, lines[0]


def fetch(url: str) -> tuple[int, bytes]:
    """Return status and body of a page; 0 where nobody listens."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  # our own, of http
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


@pytest.mark.parametrize(
    ("service", "changes", "code", "line"),
    [
        ("job", {"GURNEY_NATS_URL": "nats://127.0.0.1:9"}, TEMPORARY, "cannot reach NATS at nats://127.0.0.1:9: "),
        ("job", {"GURNEY_NATS_USER": "job", "GURNEY_NATS_PASSWORD": "wrong"}, CONFIGURATION, "refuses the user job"),
        ("scheduler", {"GURNEY_RUN_SECRET": "", **RIGHT}, CONFIGURATION, "GURNEY_RUN_SECRET is not set"),
        ("job", {"GURNEY_SECRETS_DIR": "/there/is/none"}, CONFIGURATION, "GURNEY_SECRETS_DIR: there is no folder"),
        ("job", {"GURNEY_PORT": "many"}, CONFIGURATION, "port: "),
        ("nobody", {}, CONFIGURATION, "there is no service nobody: name one or several of job, "),
    ],
)
def test_what_keeps_a_service_from_starting_is_one_line(
    tmp_path: Path, service: str, changes: dict[str, str], code: int, line: str
) -> None:
    """A wrong setting ends it at once, a part that does not come after its patience; neither by an exit code of 0."""
    server = NatsServer(tmp_path / "nats", settings='authorization { user: "job", password: "right" }').start()
    try:
        found, told = last_line(service, settings_of(server, tmp_path, **changes), "--wait", "0")
    finally:
        server.stop()
    assert (found, told.startswith("gurney: ")) == (code, True)
    assert line in told
    assert "wrong" not in told


@pytest.mark.needs("mongo")
@pytest.mark.parametrize(
    ("url", "code"), [("mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=200", TEMPORARY), ("mongo:x", CONFIGURATION)]
)
def test_a_database_that_is_away_or_none_is_told(nats_server: NatsServer, tmp_path: Path, url: str, code: int) -> None:
    """A MongoDB that nobody reaches is one line, without what is secret in its URL."""
    environment = settings_of(nats_server, tmp_path, GURNEY_MONGO_URL=url)
    found, told = last_line("job", environment, "--wait", "0")
    assert (found, told.startswith("gurney: ")) == (code, True)


def test_a_service_waits_for_nats_and_tells_so(tmp_path: Path) -> None:
    """Started before its NATS it is alive but not ready; it serves once NATS is there, and ends by 0 when asked to."""
    server = NatsServer(tmp_path / "nats").start()
    environment = settings_of(server, tmp_path)
    server.stop()
    watch = f"http://127.0.0.1:{(port := free_port())}"
    command = [str(GURNEY), "serve", "job", "map"]
    with Child(command, tmp_path / "log", environment | {"GURNEY_METRICS_PORT": str(port)}) as child:
        child.until(lambda: fetch(f"{watch}/livez")[0] == 200, READY_WITHIN_S)
        status, body = fetch(f"{watch}/readyz")
        assert (status, json.loads(body)) == (503, {"status": "away", "parts": {"job": "starts", "map": "starts"}})
        server.start()
        try:
            child.until(lambda: fetch(f"{watch}/readyz")[0] == 200, READY_WITHIN_S)
            parts = json.loads(fetch(f"{watch}/readyz")[1])["parts"]
            assert parts == dict.fromkeys(("job", "map", "nats", "documents"), "ready")
            assert b"gurney_requests_total" in fetch(f"{watch}/metrics")[1]
            server.kill()
            child.until(lambda: json.loads(fetch(f"{watch}/readyz")[1])["parts"]["nats"] == "away", READY_WITHIN_S)
            server.start()
            child.until(lambda: fetch(f"{watch}/readyz")[0] == 200, READY_WITHIN_S)
            assert child.stop() == 0
        finally:
            server.stop()
