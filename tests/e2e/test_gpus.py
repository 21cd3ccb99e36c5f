"""GPUs of a node: what is shown of them, who gets which, and those on paper. The driver is a stand-in."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gurney.testing.docker import DockerDaemon, make_image
from gurney.testing.embedded import GURNEY, EmbeddedProcess
from gurney.testing.nvml import GIB, LOST, Card, FakeNvml, Instance, Process
from gurney.testing.stack import Stack
from tests.e2e import work
from tests.e2e.api import Api, Json
from tests.e2e.conftest import ENVIRONMENT
from tests.e2e.servers import Server
from tests.e2e.test_containers import APP
from tests.e2e.test_docker import image_files, register

pytestmark = pytest.mark.needs("cc")

SEES = 'printf "%s" "$CUDA_VISIBLE_DEVICES" > "$HOLOSCAN_OUTPUT_PATH/sees"'
WHOLE = Card("GPU-1", used=GIB, name="NVIDIA A100 80GB PCIe")
DIVIDED = Card("GPU-2", instances=[Instance("MIG-a"), Instance("MIG-b")])


@pytest.fixture(scope="session")
def driver(nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> FakeNvml:
    """The driver of the node of this module."""
    return FakeNvml(nvml_library, tmp_path_factory.mktemp("driver") / "state")


@pytest.fixture(scope="session")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, maps: Path, driver: FakeNvml
) -> Iterator[Server]:
    """A server whose node has a GPU, and one that is divided."""
    driver.says(WHOLE, DIVIDED)
    kind = Stack if request.param == "stack" else EmbeddedProcess
    options: dict[str, Any] = {"agents": 1} if request.param == "stack" else {}
    environment = ENVIRONMENT | driver.environment | {"GURNEY_HEARTBEAT_INTERVAL": "0.2"}
    with kind(tmp_path_factory.mktemp(f"gpus-{request.param}") / "data", maps, environment, **options) as running:
        yield running


@pytest.fixture
def paper_server(tmp_path: Path, maps: Path) -> Iterator[EmbeddedProcess]:
    """A server whose GPUs are described."""
    environment = ENVIRONMENT | {"GURNEY_GPUS": "2x16Gi:A100", "GURNEY_NODE": "n1", "GURNEY_GPU_SHARING": "true"}
    with EmbeddedProcess(tmp_path / "data", maps, environment) as running:
        yield running


@pytest.fixture
def paper_docker(tmp_path: Path, maps: Path, docker_daemon: DockerDaemon) -> Iterator[EmbeddedProcess]:
    """A server with a Docker daemon whose GPUs are described, and an image that asks for one."""
    with closing(docker_daemon.client()) as client:
        asked = {"resources": {"cpu": 0.5, "memory": "64Mi", "gpu": 1}}
        make_image(client, "e2e-gpu:1", image_files(APP, asked))
    environment = ENVIRONMENT | {"GURNEY_GPUS": "1x16Gi", "GURNEY_NODE": "n1", "GURNEY_DOCKER_URL": docker_daemon.url}
    with EmbeddedProcess(tmp_path / "data", maps, environment) as running:
        yield running


async def the_node(api: Api) -> Json:
    """Return the one node, which may just be coming."""
    async with asyncio.timeout(work.PATIENCE_S):
        while not (nodes := (await api.get("/v1/nodes")).items):
            await asyncio.sleep(0.05)
    return dict(nodes[0])


async def gpus(api: Api) -> dict[str, Json]:
    """Return its GPUs."""
    return {gpu["uuid"]: gpu for gpu in (await the_node(api))["gpus"]}


async def sees(api: Api, **resources: Any) -> list[str]:
    """Run a job that asks for this; returns the GPUs that it sees."""
    job = await work.shell(api, SEES, resources=resources)
    assert job["state"] == "succeeded", job
    return [uuid for uuid in (await work.result(api, job, "sees")).decode().split(",") if uuid]


async def test_nodes_show_their_gpus(api: Api) -> None:
    """A node shows each GPU and each instance with what is known of it, and how many it has."""
    node = await the_node(api)
    assert (node["capacity"]["gpus"], node["free"]["gpus"], node["simulated"]) == (3, 3, False)
    found = await gpus(api)
    assert found.keys() == {"GPU-1", "MIG-a", "MIG-b"}
    assert found["GPU-1"] == {
        "uuid": "GPU-1",
        "model": "NVIDIA A100 80GB PCIe",
        "memory": 80 * GIB,
        "used": GIB,
        "others": GIB,
        "health": "ok",
        "compute_capability": "8.0",
        "driver": "570.86",
        "parent": None,
    }
    assert {uuid: gpu["parent"] for uuid, gpu in found.items()} == {"GPU-1": None, "MIG-a": "GPU-2", "MIG-b": "GPU-2"}


async def test_a_run_sees_what_was_placed(api: Api) -> None:
    """A job sees as many GPUs as it asks for, of the kind that it asks for, and none where it asks for none."""
    assert await sees(api, gpus=1, gpu_memory=40 * GIB) == ["GPU-1"]
    assert sorted(await sees(api, gpus=3)) == ["GPU-1", "MIG-a", "MIG-b"]
    assert await sees(api, gpus=0) == []


async def test_a_gpu_that_is_lost(api: Api, driver: FakeNvml) -> None:
    """A GPU that fell off the bus is shown so and gets no job; when it is back it does."""
    driver.says(Card("GPU-1", error=LOST), DIVIDED)
    async with asyncio.timeout(work.PATIENCE_S):
        while (await gpus(api))["GPU-1"]["health"] != "lost":
            await asyncio.sleep(0.05)
    asked = {"map": (await work.register(api, "shell"))["id"], "payload": await work.payload(api)}
    big = {"resources": {"gpus": 1, "gpu_memory": 40 * GIB}}
    refused = (await api.post("/v1/jobs", asked | big, case="no node has a GPU")).must(422, "infeasible")
    assert refused.fields == {"resources.gpu_memory"}
    driver.says(WHOLE, DIVIDED)
    async with asyncio.timeout(work.PATIENCE_S):
        while (await gpus(api))["GPU-1"]["health"] != "ok":
            await asyncio.sleep(0.05)
    assert await sees(api, **big["resources"]) == ["GPU-1"]


async def sharer(api: Api, ref: str, share: int, script: str, model: str = WHOLE.name) -> Json:
    """Submit a job that asks so many GiB of one of these GPUs."""
    asked = {"cpu": 0.1, "memory": 64 << 20, "gpu_share": share * GIB, "gpu_model": model}
    return await work.submit(api, ref, {"run.sh": script}, resources=asked)


async def running(api: Api, job: Json) -> Json:
    return await work.until(api, job["id"], lambda found: found["state"] == "running")


async def why(api: Api, job: Json) -> tuple[str, str]:
    """Return code and sentence of the first reason for which a job waits."""
    found = await work.until(api, job["id"], lambda found: found["waiting"] and found["waiting"]["reasons"])
    return found["waiting"]["reasons"][0]["code"], found["waiting"]["reasons"][0]["message"]


async def test_jobs_share_a_gpu(api: Api, driver: FakeNvml, tmp_path: Path) -> None:
    """Where their MAP allows it jobs run on one GPU at a time; who takes more than its share fails, and he alone."""
    made = await work.register(api, "shell", gpu_sharing=True)
    assert made["gpu_sharing"]
    go = tmp_path / "go"
    good = await running(api, await sharer(api, made["id"], 60, f'{SEES}; while [ ! -e "{go}" ]; do sleep 0.1; done'))
    bad = await running(api, await sharer(api, made["id"], 2, "sleep 600"))
    more = await sharer(api, made["id"], 20, SEES)
    assert [job["gpu_limit"] for job in (good, bad, more)] == ["watched", "watched", None]
    code, message = await why(api, more)
    assert (code, "17408 MiB of one are free" in message) == ("gpu_share_busy", True)  # beside the 1 GiB of others
    pids = [int(min(work.processes(job["id"])).name) for job in (good, bad)]
    held = [Process("GPU-1", pid, size * GIB) for pid, size in zip(pids, (60, 3), strict=True)]
    try:
        driver.says(Card("GPU-1", used=64 * GIB, name=WHOLE.name), DIVIDED, processes=held)
        bad = await work.ended(api, bad["id"])
        go.touch()
        good, more = await work.ended(api, good["id"]), await work.ended(api, more["id"])
    finally:
        driver.says(WHOLE, DIVIDED)
    assert (bad["state"], bad["reason"]["code"], bad["attempt"]) == ("failed", "gpu_memory_exceeded", 1), bad
    assert bad["usage"]["gpu_peak_memory"] == 3 * GIB
    assert (good["state"], good["usage"]["gpu_peak_memory"]) == ("succeeded", 60 * GIB), good
    assert (await work.result(api, good, "sees")).decode() == "GPU-1"
    assert more["state"] == "succeeded", more


async def test_gpus_are_exclusive_by_default(api: Api) -> None:
    """Where neither pool nor MAP say so a share has its GPU for itself, and a MIG instance always."""
    alone, sharing = await work.register(api, "shell"), await work.register(api, "shell", gpu_sharing=True)
    first = await running(api, await sharer(api, alone["id"], 1, "sleep 600"))
    assert first["gpu_limit"] == "walled"
    for made in (alone, sharing):
        code, _ = await why(api, await sharer(api, made["id"], 1, SEES))
        assert code == "gpu_share_busy"
    instance = DIVIDED.instances[0].name if DIVIDED.instances else ""
    placed = [await running(api, await sharer(api, sharing["id"], 1, "sleep 600", instance)) for _ in range(2)]
    assert [job["gpu_limit"] for job in placed] == ["walled"] * 2
    code, message = await why(api, await sharer(api, sharing["id"], 1, SEES, instance))
    assert (code, "0 MiB of one are free" in message) == ("gpu_share_busy", True)


@pytest.mark.embedded
async def test_a_pool_whose_gpus_are_shared(paper_server: EmbeddedProcess) -> None:
    """Where the node says so the jobs of all MAPs share its GPUs, and the node tells that they do."""
    async with Api(paper_server.url, paper_server.token) as api:
        assert (await the_node(api))["gpu_sharing"]
        made = await work.register(api, "shell")
        jobs = [await running(api, await sharer(api, made["id"], 5, "sleep 600", "A100")) for _ in range(6)]
        assert {job["gpu_limit"] for job in jobs} == {"watched"}
        more = await sharer(api, made["id"], 5, "sleep 600", "A100")
        code, _ = await why(api, more)
        assert code == "gpu_share_busy"
        for job in (more, *jobs):  # or else they would outlive their server
            await api.post(f"/v1/jobs/{job['id']}/cancel")
            await work.ended(api, job["id"])


@pytest.mark.embedded
async def test_gpus_on_paper(paper_server: EmbeddedProcess) -> None:
    """A server whose GPUs are described says that they are simulated, and gives them to jobs by name."""
    async with Api(paper_server.url, paper_server.token) as api:
        node = await the_node(api)
        assert (node["simulated"], node["capacity"]["gpus"]) == (True, 2)
        assert [(gpu["model"], gpu["memory"]) for gpu in node["gpus"]] == [("A100", 16 * GIB)] * 2
        seen = await sees(api, gpus=2, gpu_model="A100")
        assert sorted(seen) == ["GPU-simulated-n1-0", "GPU-simulated-n1-1"]


@pytest.mark.embedded
@pytest.mark.needs("docker")
async def test_containers_with_gpus_on_paper(paper_docker: EmbeddedProcess) -> None:
    """A MAP that asks for a GPU runs in its container where GPUs are on paper, and is told the name of one."""
    async with Api(paper_docker.url, paper_docker.token) as api:
        made = await register(api, "e2e-gpu:1")
        job = await work.ended(api, (await work.submit(api, made["id"], {"run.sh": SEES}))["id"])
        assert (job["state"], job["resources"]["gpus"]) == ("succeeded", 1), job
        assert (await work.result(api, job, "sees")).decode() == "GPU-simulated-n1-0"


@pytest.mark.embedded
async def test_a_description_that_says_nothing(tmp_path: Path) -> None:
    """`gurney up` with GPUs that it cannot read does not start, and names the option."""
    command = [str(GURNEY), "up", "--data", str(tmp_path / "data"), "--gpus", "four"]
    done = await asyncio.to_thread(
        lambda: subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=60, check=False)
    )
    assert done.returncode != 0
    assert "gpus" in done.stderr
    assert "Traceback" not in done.stderr
