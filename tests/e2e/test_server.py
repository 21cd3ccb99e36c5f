"""What the server says of itself."""

import json
import re

import pytest

from gurney.subjects import HEALTH
from services.edge.routes import ROUTES
from tests.e2e import work
from tests.e2e.api import Api
from tests.e2e.servers import Server


async def test_health(anybody: Api) -> None:
    """Whoever watches over the server needs no token to see that it is alive and ready."""
    assert (await anybody.get("/livez")).must(200).json["status"] == "alive"
    ready = (await anybody.get("/readyz")).must(200).json
    assert ready["parts"] == dict.fromkeys(("nats", "documents", "objects", *HEALTH), "ready")


@pytest.mark.embedded
async def test_metrics(api: Api, anybody: Api) -> None:
    """Requests and jobs are counted for Prometheus, by route and state and never by id."""
    job = await work.shell(api, "true")
    text = (await anybody.get("/metrics")).must(200).body.decode()
    assert re.search(r'^gurney_http_requests_total\{.*route="/v1/jobs/\{job.*\} [1-9]', text, re.MULTILINE)
    assert job["id"] not in text


async def test_openapi(anybody: Api) -> None:
    """The OpenAPI document has every route of the table with its statuses, for people at /docs."""
    document = (await anybody.get("/openapi.json")).must(200).json
    assert document["openapi"].startswith("3.1")
    for route in ROUTES:
        operation = document["paths"][route.path][route.method.lower()]
        assert {int(status) for status in operation["responses"]} >= set(route.statuses)
    page = (await anybody.get("/docs")).must(200)
    assert page.headers["Content-Type"].startswith("text/html")
    assert b"openapi.json" in page.body


async def test_asyncapi(anybody: Api) -> None:
    """The AsyncAPI document has the subjects that integrators subscribe to."""
    document = (await anybody.get("/asyncapi.json")).must(200).json
    text = json.dumps(document)
    for subject in ("job.", "map.", "payload."):
        assert subject in text


async def test_trace(api: Api, server: Server) -> None:
    """Answers name their trace, and so do the problem document and the log line of a refusal."""
    answer = (await api.get("/v1/jobs/job_nothing", case="no id")).must(404)
    trace = answer.json["trace_id"]
    assert trace in answer.headers["Traceparent"]
    lines = [json.loads(line) for line in server.logs.splitlines() if trace in line]
    assert any(line["event"] == "request" and line["status"] == 404 for line in lines)


async def test_who_did_what_is_in_the_log(api: Api, server: Server) -> None:
    """What changes something or gives bytes away is told with who asked and ids, never with names; looking is not."""
    name = "NOMEN-NESCIO-4712"
    payload = await work.payload(api, {"scan.dcm": b"x"}, name=name)
    at = f"/v1/payloads/{payload}"
    (await api.get(at)).must(200)
    (await api.get(f"/v1/payloads/{name}/files/scan.dcm")).must(200)
    (await api.delete(at)).must(204)
    lines = [json.loads(line) for line in server.logs.splitlines() if '"request"' in line]
    told = [line for line in lines if payload in line.get("about", ())]
    assert sorted((line["method"], line["status"]) for line in told) == [("DELETE", 204), ("POST", 201), ("PUT", 201)]
    caller = (await api.get("/v1/whoami")).must(200).json
    asked = {"method": "GET", "route": "/v1/payloads/{payload}/files/{path}", "token": caller["id"]}
    files = [line for line in lines if asked.items() <= line.items()]
    assert files
    for line in (*told, *files):
        assert (line["by"], line["token"], line["project"]) == (caller["subject"], caller["id"], caller["project"])
    assert name not in server.logs


async def test_log_has_no_names_of_patients(api: Api, server: Server) -> None:
    """Paths, names, labels and what applications print are not in the server's log at the default level."""
    secret = "NOMEN-NESCIO-4711"
    made = await work.register(api, "shell", name=secret)
    files: dict[str, bytes | str] = {"run.sh": f"echo {secret}; exit 1", f"{secret}.dcm": b"x"}
    job = await work.submit(api, made["id"], files, name=secret, labels={"patient": secret})
    await work.ended(api, job["id"])
    (await api.get(f"/v1/jobs/{job['id']}/results/{secret}", case="unknown path")).must(404)
    log = server.logs
    assert job["id"] in log or "request" in log
    assert secret not in log
    assert all(json.loads(line)["level"] for line in log.splitlines())
