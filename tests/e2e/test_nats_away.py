"""With the nats-server away every route that asks another service answers 503; nothing advances, nothing is lost."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gurney.testing.child import freeze
from gurney.testing.embedded import EmbeddedProcess
from tests.e2e import work
from tests.e2e.api import Api
from tests.e2e.requests import examples

ENVIRONMENT = {"GURNEY_REQUEST_TIMEOUT": "0.6", "GURNEY_CPU": "2"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, maps: Path) -> Iterator[EmbeddedProcess]:
    """A server whose nats-server may be paused, and that soon gives up to wait for it."""
    with EmbeddedProcess(tmp_path_factory.mktemp("away") / "data", maps, ENVIRONMENT) as running:
        yield running


@pytest.fixture
async def api(server: EmbeddedProcess) -> AsyncIterator[Api]:
    """Its administrator."""
    async with Api(server.url, server.token) as client:
        yield client


@contextmanager
def paused(server: EmbeddedProcess) -> Iterator[None]:
    """Freeze the nats-server."""
    pid = work.nats_pid(server.data)
    freeze(pid)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.embedded
async def test_503(server: EmbeddedProcess, api: Api) -> None:
    """Every route that asks another service says that it is away and when to come again; the others still answer."""
    asking = examples(status=503)
    assert len(asking) > 30
    with paused(server):
        answers = await asyncio.gather(*(each.send(api, "nats away") for each in asking))
        for answer in answers:
            answer.must(503)
        (await api.get("/livez")).must(200)
        (await api.get("/v1/whoami")).must(200)
    async with asyncio.timeout(work.PATIENCE_S):
        while (await api.get("/readyz", case="nats is back")).status != 200:
            await asyncio.sleep(0.1)
    (await api.get("/v1/jobs")).must(200)


@pytest.mark.slow
@pytest.mark.embedded
async def test_no_job_advances(server: EmbeddedProcess, api: Api, tmp_path: Path) -> None:
    """While the nats-server is frozen a run may end, but no job advances; afterwards all end, each started once."""
    made = await work.register(api, "half")
    script = f'echo "$GURNEY_RUN_ID" >> {tmp_path}/runs; sleep 0.2; touch {tmp_path}/"$GURNEY_RUN_ID"'
    data = await work.payload(api, {"run.sh": script})
    jobs = [(await api.post("/v1/jobs", {"map": made["id"], "payload": data})).must(201).json for _ in range(2)]
    first = await work.until(api, jobs[0]["id"], lambda job: job["state"] == "running")
    with paused(server):
        await asyncio.to_thread(_appears, tmp_path / f"{first['id']}-1")
        await asyncio.sleep(1)  # time in which the end could be told, and the next one begin
        assert [path.name for path in tmp_path.glob("job_*")] == [f"{first['id']}-1"]
        resumed = datetime.now(UTC)
    done = [await work.ended(api, job["id"]) for job in jobs]
    assert [(job["state"], job["attempt"]) for job in done] == [("succeeded", 1)] * 2
    assert datetime.fromisoformat(done[0]["stopped_at"]) >= resumed
    assert datetime.fromisoformat(done[1]["started_at"]) >= resumed
    runs = (tmp_path / "runs").read_text().split()
    assert runs == [f"{job['id']}-1" for job in jobs]


@pytest.mark.slow
@pytest.mark.embedded
async def test_killed_nats_server(server: EmbeddedProcess, api: Api) -> None:
    """A nats-server that dies is started again, and a job that ran meanwhile ends as if nothing had been."""
    job = await work.begin(api, "sleep 0.5; echo done")
    os.kill(work.nats_pid(server.data), signal.SIGKILL)
    async with asyncio.timeout(work.PATIENCE_S):
        while (await api.get(f"/v1/jobs/{job['id']}", case="nats is dead")).status != 200:
            await asyncio.sleep(0.1)
    done = await work.ended(api, job["id"])
    assert (done["state"], done["attempt"]) == ("succeeded", 1)
    assert await work.log(api, done) == "done\n"


def _appears(path: Path) -> None:
    deadline = datetime.now(UTC).timestamp() + work.PATIENCE_S
    while not path.exists():
        assert datetime.now(UTC).timestamp() < deadline
        os.sched_yield()
