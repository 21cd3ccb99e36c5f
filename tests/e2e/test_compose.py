"""One server as `compose/` runs it: containers, secrets, TLS, restart and reset. Images are made by scripts/images."""

import hashlib
import io
import json
import socket
import ssl
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlencode

import pytest

from gurney.runtime.docker.daemon import Client
from gurney.testing.docker import make_image
from tests.e2e.one_server import PATIENCE_S, PRIVATE, VERSION_2, Json, OneServer, done, sh

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("docker", "compose", "mongo", "minio", "jaeger", "prometheus", "caddy"),
    pytest.mark.timeout(3 * PATIENCE_S),
]
T = TypeVar("T")

SLOW = "gurney-test-slow:1"
#: A run of it ends when somebody leaves a file in its output.
APPLICATION = "echo begun; until [ -e /out/go ]; do sleep 0.1; done; echo done >/out/result"
HTTPS_ONLY = {"8443/tcp", "8123/tcp"}
LOOPBACK = {"16686/tcp", "9090/tcp", "7000/tcp"}

MODEL = "gurney-test-model:1"
#: What a model of InferenceServer does with a task, which may tell it to wait.
WORK = "[ ! -e /input/wait ] || until [ -e /output/go ]; do sleep 0.1; done; cp /input/in.txt /output/out.txt"
FACADES = {
    "COMPOSE_PROFILES": "inference-server,mis",
    "GURNEY_INFERENCE_SERVER_MEMORY": str(256 * 1024**2),
    "GURNEY_MIS_MAP_URN": f"urn:oci:{MODEL}",
    "GURNEY_MIS_MAP_INPUT_PATH": "/input",
    "GURNEY_MIS_MAP_OUTPUT_PATH": "/output",
    "GURNEY_MIS_MAP_MEMORY": "256",
}
PENDING, UNKNOWN = 551, 554


def applications() -> None:
    """Make the images of a MAP whose runs wait, and of a model."""
    app = {"command": json.dumps(["/bin/sh", "-c", APPLICATION]), "input": {"path": "/in"}, "output": {"path": "/out"}}
    files = {
        "/etc/holoscan/app.json": json.dumps(app | {"workingDirectory": "/", "timeout": 600}),
        "/etc/holoscan/pkg.json": json.dumps({"resources": {"cpu": 0.1, "memory": "64Mi"}}),
    }
    client = Client("unix:///var/run/docker.sock")
    try:
        make_image(client, SLOW, files, ["USER 1234:1234"])
        make_image(client, MODEL, {}, [f"CMD {json.dumps(['/bin/sh', '-c', WORK])}"])
    finally:
        client.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, after all images are made."""
    done(sh("scripts/images"))
    done(sh("scripts/images", "ct-body"))
    applications()
    return tmp_path_factory.mktemp("one-server")


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[OneServer]:
    """A server that is up and healthy; a test that stops it starts it again."""
    with OneServer(folder) as server:
        yield server.prepare(**FACADES).up()


def until(look: Callable[[], T | None], *, within_s: float = 120.0) -> T:
    """Return what a look finds, once it finds something."""
    deadline = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < deadline, "nothing came of it"
        time.sleep(0.2)
    return found


def register(site: OneServer, urn: str) -> str:
    """Register a MAP and return its id once it is ready."""
    made = site.ask("POST", "/v1/maps", {"urn": urn})
    found = until(
        lambda: settled if (settled := site.ask("GET", f"/v1/maps/{made['id']}"))["state"] != "registering" else None
    )
    assert found["state"] == "ready", found["reason"]
    return str(made["id"])


def submit(site: OneServer) -> str:
    """Return the id of a new job of the MAP that waits."""
    payload = site.ask("POST", "/v1/payloads", {"keep": True})["id"]
    site.ask("PUT", f"/v1/payloads/{payload}/files/in.txt", b"in")
    job = site.ask("POST", "/v1/jobs", {"map": register(site, f"urn:oci:{SLOW}"), "payload": payload})
    return str(job["id"])


def running(site: OneServer, job: str, attempt: int = 1) -> Json:
    """Return a job once an attempt of it runs."""

    def look() -> Json | None:
        found: Json = site.ask("GET", f"/v1/jobs/{job}")
        assert found["state"] in {"requested", "scheduled", "running"}, found
        return found if (found["state"], found["attempt"]) == ("running", attempt) else None

    return until(look)


def finish(site: OneServer, job: str, attempt: int = 1) -> Json:
    """Let a run end and return the job at its end."""
    (site.data / "agent" / "agent" / "work" / f"{job}-{attempt}" / "output" / "go").touch()
    return until(lambda: found if (found := site.ask("GET", f"/v1/jobs/{job}"))["stopped_at"] else None)


def form(part: str, files: dict[str, bytes]) -> tuple[bytes, dict[str, str]]:
    """Return a body with a zip of these files, and its headers."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    head = f'--b\r\nContent-Disposition: form-data; name="{part}"; filename="in.zip"\r\n\r\n'
    body = head.encode() + packed.getvalue() + b"\r\n--b--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=b"}


def unzipped(body: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def model(name: str) -> str:
    """Return the path that posts a model."""
    asked = {"container_tag": MODEL, "human_readable_id": name, "use_gpu": "false"}
    return f"/api/models/?{urlencode(asked)}"


def post_task(site: OneServer, name: str, **more: bytes) -> str:
    """Post a task of a model, and return its uid."""
    body, headers = form("zip_file", {"in.txt": b"in", **more})
    status, _, said = site.fetch("POST", f"/api/tasks/?model_human_readable_id={name}", body, **headers)
    assert status == 200, said
    return str(json.loads(said))


def output(site: OneServer, task: str) -> dict[str, bytes]:
    """Return what a task has made, once it has."""

    def look() -> dict[str, bytes] | None:
        status, _, said = site.fetch("GET", f"/api/tasks/{task}")
        assert status in {200, PENDING}, said
        return unzipped(said) if status == 200 else None

    return until(look)


def running_task(site: OneServer, name: str) -> tuple[str, str]:
    """Return the uid and the job of a new task that waits, once it runs."""
    task = post_task(site, name, wait=b"")
    (job,) = until(lambda: site.ask("GET", "/v1/jobs?label=inference-server=task&state=running")["items"])
    return task, str(job["id"])


def digests(server: OneServer) -> dict[str, str]:
    """Return the digest of each file that `setup` has made."""
    files = [server.file, server.data / "tls.crt", *sorted((server.data / "secrets").iterdir())]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_setup_makes_what_is_missing_and_changes_nothing(site: OneServer) -> None:
    """A second setup changes no file; a secret whose file is gone is made anew, and closed to others."""
    before = digests(site)
    done(site.setup())
    assert digests(site) == before
    (site.data / "secrets" / "nats_integrator").unlink()
    done(site.setup())
    assert digests(site).keys() == before.keys()
    assert {file.stat().st_mode & 0o777 for file in (site.data / "secrets").iterdir()} == {0o600}
    refused = site.setup("--host", "elsewhere")
    assert (refused.returncode, "change it by hand" in refused.stderr) == (1, True)


def test_a_certificate_of_the_site(folder: Path, tmp_path: Path) -> None:
    """Setup takes the site's certificate with its key, and refuses one with the key of another."""
    for name in ("one", "other"):
        done(sh("openssl", "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-days", "2", "-subj", f"/CN={name}",
                "-keyout", tmp_path / f"{name}.key", "-out", tmp_path / f"{name}.crt"))  # fmt: skip
    server = OneServer(folder.parent / "certified")
    given = ["--host", "localhost", "--data", str(server.data), "--certificate", str(tmp_path / "one.crt"), "--key"]
    refused = server.setup(*given, str(tmp_path / "other.key"))
    assert (refused.returncode, "is not the key of" in refused.stderr) == (1, True)
    done(server.setup("--certificate", str(tmp_path / "one.crt"), "--key", str(tmp_path / "one.key")))
    assert (server.data / "tls.crt").read_text() == (tmp_path / "one.crt").read_text()
    assert (server.data / "secrets" / "tls.key").read_text() == (tmp_path / "one.key").read_text()


@pytest.mark.req("INF-05")
def test_only_tls_is_open(site: OneServer) -> None:
    """No container has an open port but TLS; nobody is let in without it, nor a client that does not trust it."""
    for container in site.containers():
        for port, places in container["NetworkSettings"]["Ports"].items():
            if places:
                assert port in HTTPS_ONLY | LOOPBACK
                assert port in HTTPS_ONLY or {place["HostIp"] for place in places} == {"127.0.0.1"}
    place = ("127.0.0.1", site.port("SITE_PORT"))
    with socket.create_connection(place, 10) as plain, pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")
    with socket.create_connection(place, 10) as plain:
        plain.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert plain.recv(64).startswith(b"HTTP/1.0 400 ")
    for path, status in (("/readyz", 200), ("/docs", 200), ("/v1/jobs", 401), ("/metrics", 401)):
        assert (path, site.fetch("GET", path)[0]) == (path, status)


def test_containers_may_do_little(site: OneServer) -> None:
    """Containers are healthy, have a read-only root, no capabilities, limited memory; only the agent's user is root."""
    for container in site.containers():
        service, host = container["Config"]["Labels"]["com.docker.compose.service"], container["HostConfig"]
        assert (service, container["State"]["Health"]["Status"]) == (service, "healthy")
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert "no-new-privileges:true" in host["SecurityOpt"]
        if service != "agent":
            assert container["Config"]["User"] == "8350:8350"
            assert host["Memory"] > 0
            assert "docker.sock" not in str(container["Mounts"])


@pytest.mark.req("INF-05")
def test_each_container_has_its_own_secrets_alone(site: OneServer) -> None:
    """A service is given its own user at NATS and what it shares with those that need it too."""
    given = {
        container["Config"]["Labels"]["com.docker.compose.service"]: {
            Path(mount["Destination"]).name for mount in container["Mounts"] if mount["Destination"].startswith("/run/")
        }
        for container in site.containers()
    }
    assert given["job"] == {"nats_job", "gurney_mongo_url"}
    assert given["agent"] == {"nats_agent-localhost", "registries"}
    assert {name for name, secrets in given.items() if "registries" in secrets} == {"agent"}
    assert {name for name, secrets in given.items() if "gurney_s3_secret_key" in secrets} == {"payload", "minio"}


@pytest.mark.req("MAS-10", "INF-07")
def test_the_demo(site: OneServer) -> None:
    """The demo runs through it: a real CT in, a segmentation out, a signed notification to a job handler."""
    told = done(
        sh(
            "scripts/demo",
            GURNEY_URL=site.url,
            GURNEY_TOKEN=site.token,
            SSL_CERT_FILE=str(site.data / "tls.crt"),
            GURNEY_DEMO=str(site.folder / "demo"),
            GURNEY_DEMO_LISTEN=site.address,
        )
    )
    assert "signature valid: job.succeeded" in told
    assert {file.name for file in (site.folder / "demo" / "results").iterdir()} == {
        "segmentation.dcm",
        "overlay.png",
        "metadata.json",
    }


def test_what_watches_sees_all(site: OneServer) -> None:
    """Prometheus reaches every service and façade; Jaeger has traces of what was done, and none of idle looks."""

    def scraped() -> bool:
        targets = site.tells("SITE_PROMETHEUS_PORT", "/api/v1/targets")["data"]["activeTargets"]
        found = {target["labels"]["instance"] for target in targets}
        return found >= {"inference-server", "mis"} and all(target["health"] == "up" for target in targets)

    def traced() -> bool:
        return {"gurney-edge", "gurney-job", "gurney-payload"} <= set(
            site.tells("SITE_JAEGER_PORT", "/api/services")["data"]
        )

    site.ask("POST", "/v1/payloads", {})
    site.ask("GET", "/v1/jobs")
    until(scraped)
    until(traced)
    looks = urlencode({"service": "gurney-client", "operation": "GET /v1/jobs", "limit": 1})
    assert site.tells("SITE_JAEGER_PORT", f"/api/traces?{looks}")["data"] == []


@pytest.mark.req("INF-02", "INF-05", "INF-06", "INF-11", "INF-12")
def test_public_endpoints_of_inference_server_alone_can_be_reached(site: OneServer) -> None:
    """By TLS clients post tasks and fetch outputs; all else of the façade is for this host, and Gurney is as it was."""
    for method, path, status in (
        ("GET", "/api/models/", 200),
        ("POST", model("public"), 405),
        ("GET", "/api/models/zips/x", 404),
        ("GET", "/api/models/x", 404),
        ("GET", "/api/models/human_readable_id/x", 404),
        ("GET", "/api/tasks/", 405),
        ("PUT", "/api/tasks/?uid=x&status=1", 405),
        ("GET", "/api/tasks/inputs/x", 404),
        ("GET", "/api/tasks/outputs/x", 404),
        ("POST", "/api/tasks/outputs/x", 404),
        ("GET", "/api/tasks/x", UNKNOWN),
        ("GET", "/v1/jobs", 401),
    ):
        assert (method, path, site.fetch(method, path)[0]) == (method, path, status)
    assert site.tells(PRIVATE, "/")["message"].endswith("the private API")
    assert site.tells(PRIVATE, model("one"), "POST")["human_readable_id"] == "one"
    assert output(site, post_task(site, "one")) == {"out.txt": b"in"}
    status, kind, page = site.fetch("GET", "/inference-server/docs")
    assert (status, kind.partition(";")[0], b'fetch("openapi.json")' in page) == (200, "text/html", True)
    document = json.loads(site.fetch("GET", "/inference-server/openapi.json")[2])
    assert document["info"]["title"] == "InferenceServer, public"
    assert document["paths"].keys() == {"/api/models/", "/api/tasks/", "/api/tasks/{uid}"}
    assert "/v1/jobs" in json.loads(site.fetch("GET", "/openapi.json")[2])["paths"]


@pytest.mark.req("MIS-11", "MIS-12")
def test_a_zip_goes_in_and_the_output_folder_comes_out(site: OneServer) -> None:
    """MONAI Inference Service's clients get their answer by TLS, and its page is beside the others."""
    body, headers = form("file", {"in.txt": b"in"})
    status, kind, said = site.fetch("POST", "/upload/", body, **headers)
    assert (status, kind) == (200, "application/zip"), said
    assert unzipped(said) == {"output/out.txt": b"in"}
    assert b'action="/upload/"' in site.fetch("GET", "/mis/docs")[2]


def test_clients_wait_while_a_facade_starts_again(site: OneServer) -> None:
    """Nobody is refused while it stops and starts: a request is answered late."""
    with ThreadPoolExecutor() as pool:
        restart = pool.submit(site.compose, "restart", "--timeout", "20", "inference-server")
        statuses = []
        while not restart.done():
            statuses.append(site.fetch("GET", "/api/models/")[0])
    done(restart.result())
    assert set(statuses) == {200}
    assert site.fetch("GET", "/api/models/")[0] == 200


@pytest.mark.req("INF-05", "INF-12")
def test_what_is_enabled_is_a_setting(site: OneServer) -> None:
    """Models come from outside where that is said, whatever is said; a façade that is not named is not there."""
    site.configure(ALLOW_PUBLIC_POST_MODEL="false")
    site.up()
    assert site.fetch("POST", model("public"))[0] == 200
    site.configure(ALLOW_PUBLIC_POST_MODEL="", COMPOSE_PROFILES="mis")
    done(site.compose("up", "--detach", "--wait", "tls"))
    for path in ("/api/models/", "/api/tasks/x", "/inference-server/docs"):
        status, kind, said = site.fetch("GET", path)
        assert (path, status, kind) == (path, 404, "application/problem+json"), said
    assert site.fetch("GET", "/mis/docs")[0] == 200
    site.configure(**FACADES)
    site.up()
    assert site.fetch("POST", model("public"))[0] == 405


@pytest.mark.req("INF-05")
def test_version_2_is_behind_tls_too(site: OneServer) -> None:
    """Where a site wants it, it is on a port of its own, and models are for who has its token."""

    def asked(**headers: str) -> int:
        return site.fetch("GET", "/api/models/?human_readable_id=none", None, port=VERSION_2, **headers)[0]

    with pytest.raises(ConnectionRefusedError):
        asked()
    site.use("compose.yaml", "inference-server-2.yaml")
    site.up()
    token = (site.data / "secrets" / "gurney_inference_server_v2_token").read_text().strip()
    assert (asked(), asked(**{"X-Token": token})) == (400, UNKNOWN)
    assert site.fetch("GET", "/docs", port=VERSION_2)[0] == 200
    assert json.loads(site.fetch("GET", "/", port=VERSION_2)[2])["message"].endswith("version 2.0")
    site.use("compose.yaml")
    site.up()
    with pytest.raises(ConnectionRefusedError):
        asked()


@pytest.mark.req("INF-08")
def test_all_can_be_kept(site: OneServer) -> None:
    """Containers are made anew; models and outputs are there, and a task that ran goes on in its first attempt."""
    site.tells(PRIVATE, model("kept"), "POST")
    ended = post_task(site, "kept")
    output(site, ended)
    task, job = running_task(site, "kept")
    before = {container["Id"] for container in site.containers()}
    site.reset("keep")
    assert before.isdisjoint(container["Id"] for container in site.containers())
    assert "kept" in {each["human_readable_id"] for each in json.loads(site.fetch("GET", "/api/models/")[2])}
    assert output(site, ended) == {"out.txt": b"in"}
    assert finish(site, job)["attempt"] == 1
    assert output(site, task)["out.txt"] == b"in"


@pytest.mark.req("INF-08")
def test_restart_keeps_everything(site: OneServer) -> None:
    """A restart of all containers leaves a run going: it is adopted, and ends in its first attempt."""
    job = submit(site)
    running(site, job)
    done(site.compose("restart", "--timeout", "20"))
    site.up()
    running(site, job)
    ended = finish(site, job)
    assert (ended["state"], ended["attempt"]) == ("succeeded", 1)
    assert site.ask("GET", f"/v1/jobs/{job}/results/result") == b"done\n"


@pytest.mark.req("INF-08")
def test_scratch_data_can_be_dropped(site: OneServer) -> None:
    """Without messages and runs' folders, documents and results are there, and a job that lived is run again."""
    ended, live = submit(site), submit(site)
    running(site, ended)
    finish(site, ended)
    running(site, live)
    site.tells(PRIVATE, model("scratch"), "POST")
    made = post_task(site, "scratch")
    output(site, made)
    task, job = running_task(site, "scratch")
    assert site.runs()
    site.reset("scratch", "--stopped")
    assert site.runs() == []
    assert not list((site.data / "nats").iterdir())
    assert list((site.data / "mongo").iterdir())
    site.up()
    assert site.ask("GET", f"/v1/jobs/{ended}/results/result") == b"done\n"
    running(site, live, attempt=2)
    assert finish(site, live, attempt=2)["state"] == "succeeded"
    assert output(site, made) == {"out.txt": b"in"}
    running(site, job, attempt=2)
    finish(site, job, attempt=2)
    assert output(site, task)["out.txt"] == b"in"
    assert output(site, post_task(site, "scratch")) == {"out.txt": b"in"}


@pytest.mark.req("INF-08")
def test_all_can_begin_anew(site: OneServer) -> None:
    """Afterwards nothing is left but settings and secrets, and the first job and the first task run."""
    submit(site)
    site.tells(PRIVATE, model("again"), "POST")
    task = post_task(site, "again")
    output(site, task)
    before = digests(site)
    site.reset("all")
    assert digests(site) == before
    assert site.ask("GET", "/v1/jobs")["items"] == []
    assert [each["labels"].keys() for each in site.ask("GET", "/v1/maps")["items"]] == [{"gurney.mis"}]
    assert json.loads(site.fetch("GET", "/api/models/")[2]) == []
    assert site.fetch("GET", f"/api/tasks/{task}")[0] == UNKNOWN
    assert site.tells(PRIVATE, "/api/tasks/") == []
    assert site.tells(PRIVATE, model("again"), "POST")["human_readable_id"] == "again"
    assert output(site, post_task(site, "again")) == {"out.txt": b"in"}
    job = submit(site)
    running(site, job)
    assert finish(site, job)["state"] == "succeeded"
