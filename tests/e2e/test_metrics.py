"""The metrics, as a real Prometheus sees them: all there, explained, without ids, also while a part is away."""

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gurney.testing.child import freeze
from gurney.testing.embedded import EmbeddedProcess
from gurney.testing.prometheus import Prometheus
from gurney.testing.tools import tool
from tests.e2e import work
from tests.e2e.api import Api
from tests.e2e.conftest import ENVIRONMENT
from tests.e2e.test_handlers import handler, listening

pytestmark = [pytest.mark.needs("prometheus"), pytest.mark.slow, pytest.mark.embedded]

#: What the design promises, and the expression that shows it after one job that ran.
PROMISED = {
    "jobs by state": 'gurney_jobs_ended_total{state="succeeded"}',
    "queue wait": "gurney_queue_seconds_count",
    "placement time": "gurney_placement_seconds_count",
    "deliveries": 'gurney_deliveries_total{result="delivered"}',
    "bytes in": 'gurney_bytes_total{direction="in"}',
    "bytes out": 'gurney_bytes_total{direction="out"}',
    "seconds of runs": 'gurney_run_seconds_count{ending="succeeded"}',
    "processor time of runs": "gurney_run_cpu_seconds_total",
    "bytes that runs left": 'gurney_run_bytes_total{direction="out"}',
    "cores of the nodes": 'gurney_node_capacity{resource="cpu"}',
    "memory of the nodes": 'gurney_node_capacity{resource="memory"}',
    "requests": 'gurney_http_requests_total{route="/v1/jobs",status="201"}',
    "questions": 'gurney_requests_total{service="job",operation="create",code="ok"}',
    "messages": 'gurney_messages_total{result="done"}',
    "events": 'gurney_events_published_total{type="job.succeeded"}',
}
#: Gauges that are 0 on a server that has nothing to do.
IDLE = ("gurney_node_used", "gurney_jobs_waiting", "gurney_outbox_age_seconds", "gurney_jobs")
#: Ids, of whatever kind.
ID = re.compile(r"\b(map|pay|job|hdl|dlv|evt|tok|upl|ins)_[0-9a-z]{26}|[0-9a-f]{32}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, maps: Path) -> Iterator[EmbeddedProcess]:
    """A server whose nats-server may be paused, and that looks after itself often."""
    environment = {**ENVIRONMENT, "GURNEY_REQUEST_TIMEOUT": "1", "GURNEY_RECONCILE_INTERVAL": "0.5"}
    with EmbeddedProcess(tmp_path_factory.mktemp("scraped") / "data", maps, environment) as running:
        yield running


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory: pytest.TempPathFactory, server: EmbeddedProcess) -> Iterator[Prometheus]:
    """A Prometheus that scrapes it."""
    with Prometheus(tmp_path_factory.mktemp("prometheus"), [server.url.removeprefix("http://")]) as running:
        yield running


@pytest.fixture
async def worked(api: Api) -> Api:
    """The client of a server that has run a job, moved bytes and told a job handler."""
    async with listening() as listener:
        await handler(api, listener)
        job = await work.shell(api, 'echo x > "$HOLOSCAN_OUTPUT_PATH/f"')
        await work.result(api, job, "f")
        await listener.told(1)
    return api


async def shows(prometheus: Prometheus, expression: str, holds: Callable[[float], bool]) -> None:
    """Wait until the value of an expression is as it should be."""
    async with asyncio.timeout(work.PATIENCE_S):
        while not holds(await asyncio.to_thread(prometheus.value, expression)):
            await asyncio.sleep(0.1)


@pytest.mark.usefixtures("worked")
async def test_every_promised_metric_is_scraped(prometheus: Prometheus) -> None:
    """Each figure that the design names has a value after a job, and is explained."""
    for expression in PROMISED.values():
        await shows(prometheus, expression, lambda value: value > 0)
    for name in IDLE:
        assert await asyncio.to_thread(prometheus.query, name), name
    told = await asyncio.to_thread(prometheus.metadata)
    ours = {name: entries for name, entries in told.items() if name.startswith("gurney_")}
    assert len(ours) >= 15
    assert all(len(entry["help"]) > 10 for entries in ours.values() for entry in entries)


async def test_live_jobs_and_what_they_hold_are_seen(api: Api, prometheus: Prometheus) -> None:
    """A running and a waiting job are counted, the running one's cores are used, and all goes back to 0."""
    running = await work.begin(api, "sleep 60", "half")
    waiting = await work.submit(api, running["map"]["id"], {"run.sh": "true"})
    await shows(prometheus, 'gurney_jobs{state="running"}', lambda value: value == 1)
    await shows(prometheus, 'gurney_jobs{state="requested"}', lambda value: value == 1)
    await shows(prometheus, "gurney_jobs_waiting", lambda value: value == 1)
    await shows(prometheus, 'gurney_node_used{resource="cpu"}', lambda value: value == 1.5)
    for job in (waiting, running):
        await api.post(f"/v1/jobs/{job['id']}/cancel")
        await work.ended(api, job["id"])
    await shows(prometheus, "sum(gurney_jobs)", lambda value: value == 0)
    await shows(prometheus, 'gurney_node_used{resource="cpu"}', lambda value: value == 0)


async def test_metrics_are_well_formed_and_carry_no_ids(worked: Api) -> None:
    """Promtool finds nothing to say, and neither an id nor the name of a node is a label."""
    page = (await worked.get("/metrics")).must(200).body.decode()
    command = [str(tool("promtool")), "check", "metrics"]
    checked = await asyncio.to_thread(
        subprocess.run, command, input=page, capture_output=True, text=True, timeout=20, check=False
    )
    ours = [line for line in (checked.stdout + checked.stderr).splitlines() if line.startswith("gurney")]
    assert (ours, checked.returncode) == ([], 0), checked.stderr
    (node,) = (await worked.get("/v1/nodes")).must(200).items
    series = [line for line in page.splitlines() if line.startswith("gurney_")]
    assert not [line for line in series if ID.search(line) or f'"{node["id"]}"' in line]


async def test_scraped_while_nats_is_away(api: Api, server: EmbeddedProcess, prometheus: Prometheus) -> None:
    """With the message server frozen the metrics are there as before, and count what is refused."""
    refused = 'gurney_http_requests_total{status="503"}'
    before = await asyncio.to_thread(prometheus.value, refused)
    pid = await asyncio.to_thread(work.nats_pid, server.data)
    await asyncio.to_thread(freeze, pid)
    try:
        (await api.get("/v1/maps")).must(503)
        await shows(prometheus, refused, lambda value: value > before)
        assert await asyncio.to_thread(prometheus.value, "min_over_time(up[2s])") == 1
    finally:
        os.kill(pid, signal.SIGCONT)
    async with asyncio.timeout(work.PATIENCE_S):
        while (await api.get("/readyz")).status != 200:
            await asyncio.sleep(0.05)
