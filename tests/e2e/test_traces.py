"""One request is one trace, from the client to the webhook: asked of a real Jaeger, of every way that a job may go."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gurney import recording, tracing
from gurney.client import AsyncClient
from gurney.testing.embedded import GURNEY, EmbeddedProcess
from gurney.testing.jaeger import Jaeger, Seen, Trace
from gurney.testing.stack import Stack
from tests.e2e import work
from tests.e2e.api import Api, Json
from tests.e2e.conftest import ENVIRONMENT
from tests.e2e.servers import Server
from tests.e2e.test_handlers import handler, listening

pytestmark = [pytest.mark.needs("jaeger"), pytest.mark.slow]

SERVICES = {f"gurney-{name}" for name in ("client", "edge", "map", "payload", "job", "scheduler", "agent", "notifier")}
#: What the consumers of a job that fails tell.
HOPS = {
    "process run.start",
    "process lifecycle.scheduled",
    "process lifecycle.started",
    "process lifecycle.failed",
    "process job.failed",
}
#: Writes the trace context that the application was given where it is read back.
SHOWS_CONTEXT = 'printf %s "$TRACEPARENT" > "$HOLOSCAN_OUTPUT_PATH/context"'


@pytest.fixture(scope="session")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """A Jaeger that is told all."""
    with Jaeger(tmp_path_factory.mktemp("jaeger")) as running:
        yield running


@pytest.fixture(scope="session")
def environment(jaeger: Jaeger) -> dict[str, str]:
    """What makes a server tell the Jaeger all."""
    return {**ENVIRONMENT, "GURNEY_OTLP_ENDPOINT": jaeger.endpoint}


@pytest.fixture(scope="session")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, maps: Path, environment: dict[str, str]
) -> Iterator[Server]:
    """A server whose traces are recorded."""
    data = tmp_path_factory.mktemp("traced") / "data"
    made = (
        Stack(data, maps, environment, agents=1)
        if request.param == "stack"
        else EmbeddedProcess(data, maps, environment)
    )
    with made as running:
        yield running


@pytest.fixture
def own(tmp_path: Path, maps: Path, environment: dict[str, str]) -> Iterator[EmbeddedProcess]:
    """Such a server for one test, which may stop and kill it."""
    with EmbeddedProcess(tmp_path / "data", maps, environment) as running:
        yield running


@pytest.fixture
async def client(
    server: Server, api: Api, jaeger: Jaeger, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[AsyncClient]:
    """A client of the test's project that records what it does."""
    monkeypatch.setenv("GURNEY_OTLP_ENDPOINT", jaeger.endpoint)
    async with AsyncClient(server.url, api.token) as opened:
        yield opened
    await asyncio.to_thread(recording.stop)


async def known(jaeger: Jaeger, trace_id: str, complete: Callable[[Trace], bool]) -> Trace:
    """Return a trace once it is complete and no span waits for its parent, held against what holds of every trace."""
    trace = await asyncio.to_thread(
        jaeger.trace, trace_id, lambda found: complete(found) and not found.orphans and bool(found.roots)
    )
    assert complete(trace), sorted({(span.service, span.name) for span in trace.spans})
    assert not trace.orphans, [(span.service, span.name) for span in trace.orphans]
    assert len(trace.roots) == 1, trace.roots
    return trace


def has(*names: str) -> Callable[[Trace], bool]:
    """Tell whether a trace has spans of all these names."""
    return lambda trace: set(names) <= {span.name for span in trace.spans}


def is_told(trace: Trace, event: str) -> bool:
    return any(span.service == "gurney-notifier" for span in trace.named(f"process job.{event}"))


def about(trace: Trace, job: str) -> list[Seen]:
    """Return the spans about a job; none of the trace is about another."""
    assert {span.tags["gurney.job"] for span in trace.spans if "gurney.job" in span.tags} == {job}
    return [span for span in trace.spans if "gurney.job" in span.tags]


async def submit(client: AsyncClient, api: Api, script: str, **options: Any) -> tuple[Json, str]:
    """Submit a shell script as a job; returns it with the id of the trace that this request began."""
    made = await work.register(api, "shell")
    payload = await work.payload(api, {"run.sh": script})
    with tracing.span("submit", tracing.INTERNAL, service="client") as root:
        job = await client.jobs.create(map=made["id"], payload=payload, **options)
    return job, root.traceparent[3:35]


async def test_one_request_is_one_trace(client: AsyncClient, api: Api, jaeger: Jaeger) -> None:
    """The client's span is the root of all: edge, services, scheduler, agent, run, upload of results, webhook."""
    async with listening() as listener:
        await handler(api, listener, events=["job.succeeded"])
        job, trace_id = await submit(client, api, SHOWS_CONTEXT)
        ended = await work.ended(api, job["id"])
        assert ended["state"] == "succeeded", ended
        ((headers, _),) = await listener.told(1)
        trace = await known(jaeger, trace_id, has("webhook", "svc.map.get"))
    assert trace.services == SERVICES
    assert trace.roots[0].name == "submit"
    (run,), (webhook,) = trace.named("run"), trace.named("webhook")
    assert headers["traceparent"].startswith(f"00-{trace_id}-{webhook.id}-")
    assert (await work.result(api, ended, "context")).decode().startswith(f"00-{trace_id}-{run.id}-")
    assert run.tags["gurney.run"] == f"{job['id']}-1"
    assert (run.tags["gurney.ending"], run.tags["process.exit.code"]) == ("succeeded", 0)
    steps = {span.name for span in trace.spans if span.parent == run.id}
    asked = {"svc.scheduler.confirm", "svc.scheduler.ended"}
    assert asked | {"staging", "starting", "running", "upload results"} <= steps
    (end,) = trace.named("process job.succeeded")
    assert webhook.parent == end.id
    way = [f"{span.service[7:]}: {span.name}" for span in trace.above(end)]
    assert way == [
        "job: process lifecycle.succeeded",
        "scheduler: svc.scheduler.ended",
        "agent: run",
        "agent: process run.start",
        "scheduler: place",
        "job: svc.job.create",
        "edge: POST /v1/jobs",
        "client: POST /v1/jobs",
        "client: submit",
    ]


async def test_spans_say_what_they_are_about(client: AsyncClient, api: Api, jaeger: Jaeger) -> None:
    """The job's id is on every span that has one, messages are told as OpenTelemetry says, no question comes twice."""
    job, trace_id = await submit(client, api, "exit 3")
    trace = await known(jaeger, trace_id, has("svc.map.get", "svc.payload.end", *HOPS))
    with_job = about(trace, job["id"])
    assert {span.name for span in trace.spans if span not in with_job} <= {"svc.map.get"}
    consumed = [span for span in trace.spans if span.tags["span.kind"] == "consumer"]
    for span in consumed:
        assert span.tags["messaging.system"] == "nats"
        assert span.tags["messaging.operation.name"] == "process"
        assert span.tags["messaging.message.id"].startswith("evt_")
    assert {(span.service, span.name) for span in trace.spans if span.name.startswith("svc.")} == {
        (f"gurney-{answerer}", f"svc.{answerer}.{name}")
        for answerer, name in (
            ("job", "create"),
            ("map", "get"),
            ("payload", "claim"),
            ("scheduler", "confirm"),
            ("payload", "sign"),
            ("scheduler", "ended"),
            ("payload", "end"),
        )
    }
    assert {span.name for span in consumed} == HOPS
    (run,) = trace.named("run")
    assert (run.tags["error.type"], run.tags["process.exit.code"], run.tags["error"]) == ("exit_nonzero", 3, True)
    found = await asyncio.to_thread(jaeger.traces_of, "gurney-job", {"gurney.job": job["id"]})
    assert trace_id in {each.id for each in found}


async def test_a_retried_job_stays_in_its_trace(client: AsyncClient, api: Api, jaeger: Jaeger) -> None:
    """Both attempts of a job are in one trace, each with a run and a placement of its own."""
    job, trace_id = await submit(client, api, '[ "$GURNEY_ATTEMPT" = 2 ]', retries=1)
    trace = await known(jaeger, trace_id, lambda found: is_told(found, "succeeded"))
    about(trace, job["id"])
    attempts = [f"{job['id']}-1", f"{job['id']}-2"]
    assert [span.tags["gurney.run"] for span in trace.named("run")] == attempts
    assert [span.tags["gurney.run"] for span in trace.named("place")] == attempts
    assert trace.named("run")[0] in trace.above(trace.named("run")[1])


async def test_a_canceled_job_stays_in_its_trace(client: AsyncClient, api: Api, jaeger: Jaeger) -> None:
    """What a cancel does to a job is in the job's trace, and links to the request that asked for it."""
    job, trace_id = await submit(client, api, "sleep 60")
    await work.until(api, job["id"], lambda found: found["state"] == "running")
    with tracing.span("regret", tracing.INTERNAL, service="client") as regret:
        await client.jobs.cancel(job["id"])
    trace = await known(jaeger, trace_id, has("process cancel", "process run.stop", "process job.canceled"))
    about(trace, job["id"])
    (change,) = trace.named("change job")
    assert change in trace.above(trace.named("process cancel")[0])
    other = await known(jaeger, regret.traceparent[3:35], has("regret", "svc.job.cancel"))
    (asked,) = other.named("svc.job.cancel")
    assert change.links == (asked.id,)
    assert {span.tags.get("gurney.job", job["id"]) for span in other.spans} == {job["id"]}


async def test_a_job_that_is_canceled_while_it_waits(client: AsyncClient, api: Api, jaeger: Jaeger) -> None:
    """The trace of a job that never ran tells of its end too."""
    blocking = await work.begin(api, "sleep 60", "half")
    made = await work.register(api, "half")
    with tracing.span("submit", tracing.INTERNAL, service="client") as root:
        job = await client.jobs.create(map=made["id"], payload=await work.payload(api))
    await client.jobs.cancel(job["id"])
    assert (await work.ended(api, job["id"]))["state"] == "canceled"
    await client.jobs.cancel(blocking["id"])
    trace = await known(jaeger, root.traceparent[3:35], lambda found: is_told(found, "canceled"))
    about(trace, job["id"])
    assert not trace.named("run")


async def test_a_redelivered_message(client: AsyncClient, api: Api, server: Server, jaeger: Jaeger) -> None:
    """A message that comes again has a span for each delivery, linked to the one before, in the same trace."""
    (data,) = server.hosts
    folder, away = data / "agent" / "work", data / "agent" / "work.away"
    await asyncio.to_thread(folder.rename, away)
    try:
        job, trace_id = await submit(client, api, "true")
        async with asyncio.timeout(work.PATIENCE_S):
            while f'.start.{job["id"]}-1", "error"' not in await asyncio.to_thread(lambda: server.logs):
                await asyncio.sleep(0.02)
    finally:
        await asyncio.to_thread(away.rename, folder)
    assert (await work.ended(api, job["id"]))["state"] == "succeeded"
    trace = await known(jaeger, trace_id, lambda found: is_told(found, "succeeded"))
    about(trace, job["id"])
    deliveries = trace.named("process run.start")
    assert len(deliveries) >= 2
    assert [span.tags.get("gurney.delivery", 1) for span in deliveries] == list(range(1, len(deliveries) + 1))
    assert [span.links for span in deliveries] == [(), *((before.id,) for before in deliveries[:-1])]
    assert len({span.parent for span in deliveries}) == 1
    assert deliveries[0].tags["error.type"] == "FileNotFoundError"
    assert deliveries[-1] in trace.above(trace.named("run")[0])


@pytest.mark.parametrize(
    ("end", "meanwhile"), [("stop", False), ("kill", False), ("stop", True)], ids=["stop", "kill", "ended-meanwhile"]
)
async def test_a_run_that_outlives_the_agent(
    own: EmbeddedProcess, jaeger: Jaeger, end: str, *, meanwhile: bool
) -> None:
    """A run whose agent was restarted has one span from its beginning to its end, and nothing below it is an orphan."""
    async with Api(own.url, own.token) as api:
        job = await work.begin(api, f"sleep 5; {SHOWS_CONTEXT}")
        before = await running(jaeger, job["id"])
    await asyncio.to_thread(own.stop if end == "stop" else own.kill)
    while meanwhile and await asyncio.to_thread(lambda: bool(work.processes(job["id"]))):
        await asyncio.sleep(0.05)
    await asyncio.to_thread(own.start)
    async with Api(own.url, own.token) as api:
        ended = await work.ended(api, job["id"])
        context = (await work.result(api, ended, "context")).decode()
    trace = await known(jaeger, context[3:35], has("run", "svc.payload.end", "process job.succeeded"))
    (run,) = trace.named("run")
    assert context[36:52] == run.id
    assert run.duration > 4.9e6
    assert [run in trace.above(span) for span in trace.named("starting")] == [True]
    assert {span.id for span in before.spans} <= {span.id for span in trace.spans}
    (process,) = trace.named("running")
    assert process.duration > 4.9e6


async def running(jaeger: Jaeger, job: str) -> Trace:
    """Return the trace of a running job once Jaeger knows all of it so far: what is younger, a kill may take."""
    async with asyncio.timeout(work.PATIENCE_S):
        while True:
            traces = await asyncio.to_thread(jaeger.traces_of, "gurney-job", {"gurney.job": job})
            if found := [trace for trace in traces if has("process lifecycle.started")(trace)]:
                return found[0]
            await asyncio.sleep(0.1)


async def test_the_command_line_begins_the_trace(api: Api, server: Server, jaeger: Jaeger, tmp_path: Path) -> None:
    """All that `gurney run` does, upload and download included, is one trace under one span."""
    await work.register(api, "shell")
    (tmp_path / "run.sh").write_text(SHOWS_CONTEXT)
    environment = os.environ | {
        "GURNEY_URL": server.url,
        "GURNEY_TOKEN": api.token or "",
        "GURNEY_OTLP_ENDPOINT": jaeger.endpoint,
    }
    command: list[str | Path] = [
        GURNEY,
        "run",
        "urn:gurney:dir:shell",
        tmp_path / "run.sh",
        "-o",
        tmp_path / "out",
        "--json",
    ]

    def run() -> str:
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True).stdout

    job = json.loads(await asyncio.to_thread(run))
    trace_id = (tmp_path / "out" / "context").read_text()[3:35]
    trace = await known(jaeger, trace_id, has("process job.succeeded", "svc.map.get", "gurney run"))
    assert trace.roots[0].name == "gurney run"
    assert trace.services == SERVICES
    assert {"PUT /v1/payloads/files", "POST /v1/jobs", "GET /v1/payloads/files"} <= {span.name for span in trace.spans}
    assert trace.roots[0].tags["gurney.job"] == job["id"]


async def test_a_client_that_records_nothing(server: Server, api: Api, jaeger: Jaeger) -> None:
    """The trace of a client that is told of no collector begins at the edge, and is recorded all the same."""
    made, payload = await work.register(api, "shell"), await work.payload(api, {"run.sh": "true"})
    async with AsyncClient(server.url, api.token) as client:
        job = await client.jobs.create(map=made["id"], payload=payload)
        assert (await client.jobs.get(job["id"], wait_s=60))["state"] == "succeeded"
    async with asyncio.timeout(work.PATIENCE_S):
        while not (found := await asyncio.to_thread(jaeger.traces_of, "gurney-job", {"gurney.job": job["id"]})):
            await asyncio.sleep(0.1)
    trace = await known(jaeger, found[0].id, has("process job.succeeded", "svc.map.get"))
    assert trace.services == SERVICES - {"gurney-client"}
    assert (trace.roots[0].service, trace.roots[0].name) == ("gurney-edge", "POST /v1/jobs")


async def test_who_is_not_sampled_is_not_recorded(client: AsyncClient, api: Api, jaeger: Jaeger) -> None:
    """A caller who says that his trace is not recorded is followed, and his trace id is told to him all the same."""
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-00"}
    answer = (await api.get("/v1/whoami", headers=headers)).must(200)
    assert trace_id in answer.headers["Traceparent"]
    recorded, recorded_id = await submit(client, api, "true")
    await known(jaeger, recorded_id, lambda found: is_told(found, "succeeded"))
    assert recorded["id"]
    assert not (await asyncio.to_thread(jaeger.trace, trace_id, lambda _: True)).spans
