"""A GPU that vanishes from a running container: devices as a toolkit for GPUs injects them, rules as a reload has them.

The daemon finds a stand-in for the hook of NVIDIA's toolkit, which gives containers memory devices under other names.
"""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gurney.testing.docker import DockerDaemon, make_image
from gurney.testing.embedded import EmbeddedProcess
from gurney.testing.nvml import Card, FakeNvml
from tests.e2e import work
from tests.e2e.api import Api
from tests.e2e.conftest import ENVIRONMENT
from tests.e2e.test_containers import APP
from tests.e2e.test_docker import image_files, register
from tests.service.test_docker_runtime import ZERO, take_device

pytestmark = [pytest.mark.needs("docker"), pytest.mark.needs("cc")]

IMAGE = "e2e-vanish:1"
#: A hook of the OCI runtime hears of the container on its standard input, before the root of its mounts is changed.
HOOK = f"""#!/bin/sh
state=$(cat)
of() {{ printf %s "$state" | sed -n "s/.*\\"$1\\":\\"\\{{0,1\\}}\\([^,\\"}}]*\\).*/\\1/p"; }}
root=$(sed -n 's/.*"root":{{"path":"\\([^"]*\\)".*/\\1/p' "$(of bundle)/config.json")
for name in nvidia0 nvidiactl; do
    nsenter -t "$(of pid)" -m mknod -m 666 "$root/dev/$name" c 1 {ZERO} || exit 1
done
"""
SCRIPT = """
echo > "$HOLOSCAN_OUTPUT_PATH/began"
[ "$GURNEY_ATTEMPT" = 1 ] && exec sleep 60
: < /dev/nvidia0 && : < /dev/nvidiactl
"""


@pytest.fixture
def gpu_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerDaemon]:
    """A daemon that has GPUs to give, and an image that asks for one."""
    hook = tmp_path / "bin" / "nvidia-container-runtime-hook"
    hook.parent.mkdir()
    hook.write_text(HOOK)
    hook.chmod(0o755)
    monkeypatch.setenv("PATH", str(hook.parent), prepend=":")
    with DockerDaemon(Path(tempfile.mkdtemp(prefix="gurney-docker-"))) as daemon:
        with closing(daemon.client()) as client:
            make_image(client, IMAGE, image_files(APP, {"resources": {"cpu": 0.5, "memory": "256Mi", "gpu": 1}}))
        yield daemon


@pytest.fixture
def gpu_server(tmp_path: Path, maps: Path, gpu_daemon: DockerDaemon, nvml_library: Path) -> Iterator[EmbeddedProcess]:
    """A server with this daemon, whose node has a GPU that is well."""
    driver = FakeNvml(nvml_library, tmp_path / "driver")
    driver.says(Card("GPU-1"))
    environment = ENVIRONMENT | driver.environment
    environment |= {"GURNEY_DOCKER_URL": gpu_daemon.url, "GURNEY_GPU_PROBE_INTERVAL": "0.5"}
    with EmbeddedProcess(tmp_path / "data", maps, environment) as running:
        yield running


def vanish(daemon: DockerDaemon, run_id: str) -> None:
    """Have the container of a run open its GPU no more. Blocks."""
    with closing(daemon.client()) as client:
        (found,) = client.containers(filters={"label": f"gurney.run={run_id}"})
        pid = client.inspect_container(found["Id"])["State"]["Pid"]
    take_device(found["Id"], pid, "nvidiactl", ZERO)


@pytest.mark.embedded
async def test_a_gpu_that_vanishes_from_a_running_container(
    gpu_server: EmbeddedProcess, gpu_daemon: DockerDaemon
) -> None:
    """The attempt is `gpu_lost`, the next one has its GPU, and the GPU was well all the time."""
    async with Api(gpu_server.url, gpu_server.token) as api:
        made = await register(api, IMAGE)
        job = await work.submit(api, made["id"], {"run.sh": SCRIPT})
        await work.until(api, job["id"], lambda found: found["state"] == "running")
        await asyncio.to_thread(vanish, gpu_daemon, f"{job['id']}-1")
        job = await work.ended(api, job["id"])
        assert (job["state"], job["attempt"]) == ("succeeded", 2), job
        (retried,) = (
            each for each in (await api.get(f"/v1/jobs/{job['id']}/story")).items if each["event"] == "retrying"
        )
        assert "could not open the devices of its GPUs" in retried["message"]
        (node,) = (await api.get("/v1/nodes")).items
        assert [gpu["health"] for gpu in node["gpus"]] == ["ok"]
