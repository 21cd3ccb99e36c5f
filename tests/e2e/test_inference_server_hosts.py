"""Tasks of InferenceServer's clients on several hosts: what its job consumers did, one for each GPU."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gurney.testing.stack import Stack
from tests.e2e import work
from tests.e2e.api import Api, Json
from tests.e2e.applications import make_maps
from tests.e2e.inference_server import InferenceServer, packed, waits
from tests.e2e.kill_stack import ENVIRONMENT

pytestmark = [pytest.mark.slow, pytest.mark.needs("mongo", "minio")]

HOSTS, GPUS = 2, 2


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Two hosts with two GPUs each, on paper."""
    maps = make_maps(tmp_path / "maps")
    environment = ENVIRONMENT | {"GURNEY_GPUS": f"{GPUS}x16Gi", "GURNEY_CPU": "16"}
    with Stack(tmp_path / "data", maps, environment, replicas=1, agents=HOSTS) as running:
        yield running


@pytest.fixture
async def inference(stack: Stack, tmp_path: Path) -> AsyncIterator[InferenceServer]:
    (tmp_path / "facade").mkdir()
    facade = await asyncio.to_thread(InferenceServer, stack, tmp_path / "facade", GURNEY_MONGO_URL=stack.mongo.url)
    await asyncio.to_thread(facade.start)
    yield facade
    await asyncio.to_thread(facade.child.stop)


@pytest.mark.req("INF-04")
async def test_tasks_run_on_all_hosts_one_for_each_gpu(inference: InferenceServer, tmp_path: Path) -> None:
    """As many run at once as there are GPUs, on all hosts, and the next begins when one ends."""
    model = await inference.model(use_gpu="true")
    gates = [tmp_path / f"gate-{number}" for number in range(HOSTS * GPUS + 1)]
    uids = [await inference.task(model, packed(waits(gate, "exit 0"))) for gate in gates]
    async with Api(inference.server.url, inference.token) as api:
        running = await until_running(api, HOSTS * GPUS)
        assert sorted(job["node"] for job in running) == ["node-1", "node-1", "node-2", "node-2"]
        assert all(job["resources"]["gpus"] == 1 for job in running)
        statuses = [(await inference.told(uid))["status"] for uid in uids]
        assert sorted(statuses) == [-1, *[2] * HOSTS * GPUS]
        last = uids[statuses.index(-1)]
        for gate in gates:
            await asyncio.to_thread(gate.touch)
        for uid in (last, *uids):
            (await inference.output(uid)).must(200)


async def until_running(api: Api, count: int) -> list[Json]:
    """Return the jobs that run, once there are so many."""
    async with asyncio.timeout(work.PATIENCE_S):
        while len(found := await api.all("/v1/jobs?state=running")) < count:
            await asyncio.sleep(0.05)
    return found
