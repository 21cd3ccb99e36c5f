"""`gurney serve`: processes of one service each, that wait for what they stand on and say what is wrong."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from gurney.ids import new_id
from gurney.testing.child import Child, free_port
from gurney.testing.mongo import MongoServer
from gurney.testing.nats import NatsServer
from gurney.testing.s3 import S3Server

GURNEY = Path(sys.executable).parent / "gurney"
READY_WITHIN_S = 30.0
#: Exit codes of sysexits.h.
TEMPORARY, CONFIGURATION = 75, 78

RIGHT = {"GURNEY_NATS_USER": "job", "GURNEY_NATS_PASSWORD": "right"}

pytestmark = pytest.mark.timeout(120)


def settings_of(server: NatsServer, folder: Path, **more: str) -> dict[str, str]:
    return {"GURNEY_NATS_URL": server.url, "GURNEY_DATA": str(folder / "data"), "GURNEY_RUN_SECRET": "x", **more}


def documents_in(server: MongoServer) -> dict[str, str]:
    """Return the settings of a database that nobody has."""
    return {"GURNEY_MONGO_URL": server.url, "GURNEY_MONGO_DATABASE": new_id("ins")}


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
        ("agent", {"GURNEY_NATS_URL": "nats://127.0.0.1:9"}, TEMPORARY, "cannot reach NATS at nats://127.0.0.1:9: "),
        ("agent", {"GURNEY_NATS_USER": "job", "GURNEY_NATS_PASSWORD": "wrong"}, CONFIGURATION, "refuses the user job"),
        ("job", {"GURNEY_SECRETS_DIR": "/there/is/none"}, CONFIGURATION, "GURNEY_SECRETS_DIR: there is no folder"),
        ("job", {"GURNEY_PORT": "many"}, CONFIGURATION, "port: "),
        ("job", {}, CONFIGURATION, "mongo_url is not set: documents in a file are for one process alone"),
        ("agent", {"GURNEY_HEARTBEAT_INTERVAL": "30"}, CONFIGURATION, "node_lost_after: 30 s must be at least 3"),
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
def test_a_stream_that_may_not_be_made_is_told(tmp_path: Path, mongo_server: MongoServer) -> None:
    """A NATS user without the right to make the service's stream ends it at once, whatever its patience."""
    allowed = '{ user: "job", password: "right", permissions: { publish: ["$SRV.>"], subscribe: [">"] } }'
    server = NatsServer(tmp_path / "nats", settings=f"authorization {{ users: [{allowed}] }}").start()
    try:
        found = last_line("job", settings_of(server, tmp_path, **RIGHT, **documents_in(mongo_server)))
    finally:
        server.stop()
    assert found == (CONFIGURATION, "gurney: NATS does not let this user make the stream EVENTS")


@pytest.mark.needs("mongo")
def test_documents_that_cannot_be_had_are_told(nats_server: NatsServer, tmp_path: Path) -> None:
    """A MongoDB that nobody reaches is waited for; what it refuses, or no URL, ends the service at once."""

    def told(url: str, *options: str) -> tuple[int, str]:
        return last_line("job", settings_of(nats_server, tmp_path, GURNEY_MONGO_URL=url), *options)

    server = MongoServer(tmp_path / "mongo", user="ann", password="right").start()
    try:
        found, line = told(server.url_as("ann", "wr0ng"))
        assert (found, "refuses the credentials" in line, "wr0ng" in line) == (CONFIGURATION, True, False)
        with server.client() as client:
            client["gurney"]["jobs"].insert_many([{"_id": each, "keys": ["k"]} for each in ("a", "b")])
        found, line = told(server.url)
        assert (found, "cannot make the indexes of jobs" in line) == (CONFIGURATION, True)
    finally:
        server.stop()
    found, line = told(f"{server.url_as('ann', 'wr0ng')}&serverSelectionTimeoutMS=200", "--wait", "0")
    assert (found, "does not answer" in line, "wr0ng" in line) == (TEMPORARY, True, False)
    found, line = told("mongo:x")
    assert (found, "mongo_url" in line) == (CONFIGURATION, True)


@pytest.fixture
def parts(nats_server: NatsServer, mongo_server: MongoServer, minio_server: S3Server, tmp_path: Path) -> dict[str, str]:
    """The settings of a payload service that has all it needs."""
    objects = {f"GURNEY_{name.upper()}": str(value) for name, value in minio_server.settings().items()}
    return settings_of(nats_server, tmp_path, **documents_in(mongo_server), **objects)


@pytest.mark.needs("mongo", "minio")
@pytest.mark.parametrize(
    ("changes", "code", "line"),
    [
        ({"GURNEY_S3_SECRET_KEY": ""}, CONFIGURATION, "s3_access_key and s3_secret_key are needed"),
        ({"GURNEY_S3_SECRET_KEY": "wr0ng"}, CONFIGURATION, "refuses s3_access_key"),
        ({"GURNEY_S3_ACCESS_KEY": "nobody"}, CONFIGURATION, "refuses s3_access_key 'nobody'"),
        ({"GURNEY_S3_BUCKET": "192.168.1.1"}, CONFIGURATION, "bucket '192.168.1.1'"),
        ({"GURNEY_S3_URL": "http://127.0.0.1:9"}, TEMPORARY, "is not there"),
    ],
)
def test_objects_that_cannot_be_had_are_told(
    parts: dict[str, str], changes: dict[str, str], code: int, line: str
) -> None:
    """An S3 server that nobody reaches is waited for; missing or wrong keys, or no such bucket, end it at once."""
    found, told = last_line("payload", parts | changes, *(["--wait", "0"] if code == TEMPORARY else []))
    assert (found, told.startswith("gurney: "), line in told, "wr0ng" in told) == (code, True, True, False), told


@pytest.mark.needs("mongo")
def test_a_secret_that_is_missing_is_told(nats_server: NatsServer, mongo_server: MongoServer, tmp_path: Path) -> None:
    """A scheduler that could sign nothing does not start."""
    environment = settings_of(nats_server, tmp_path, **documents_in(mongo_server)) | {"GURNEY_RUN_SECRET": ""}
    found, told = last_line("scheduler", environment)
    assert (found, "GURNEY_RUN_SECRET is not set" in told) == (CONFIGURATION, True)


@pytest.mark.needs("mongo")
def test_a_service_waits_for_nats_and_tells_so(tmp_path: Path, mongo_server: MongoServer) -> None:
    """Started before its NATS it is alive but not ready; it serves once NATS is there, and ends by 0 when asked to."""
    server = NatsServer(tmp_path / "nats").start()
    environment = settings_of(server, tmp_path, **documents_in(mongo_server))
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
