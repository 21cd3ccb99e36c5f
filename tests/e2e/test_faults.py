"""SIGKILL and SIGSTOP of any one part of the stack under load: nothing accepted is lost, and nothing runs twice.

`GURNEY_SEED` repeats the choices of a run, `GURNEY_KILLS` says how often each kind of part is killed.
"""

import asyncio
import contextlib
import os
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gurney.runtime.docker.reading import INSPECT_LABEL
from gurney.runtime.docker.runs import RUN_LABEL
from gurney.testing.docker import DockerDaemon
from gurney.testing.stack import Stack
from tests.e2e import kill_checks as checks
from tests.e2e.kill_load import Listener, Load, make_images, make_maps, prepare
from tests.e2e.kill_parts import PARTS, BreakingStack
from tests.e2e.kill_stack import ENVIRONMENT, unsettled
from tests.plugins.servers import left_out, missing

#: What befalls a part: its end, its end with the loss of what JetStream stored, a rest.
KINDS = (*PARTS, "dockerd", "wipe", "pause")
#: Profile -> how often each kind comes.
KILLS = {"quick": 1, "ci": 2, "long": 20}


@pytest.fixture
def starts(tmp_path: Path) -> Path:
    return tmp_path / "starts"


@pytest.fixture
def daemon(request: pytest.FixtureRequest) -> Iterator[DockerDaemon | None]:
    """A Docker daemon for both hosts, where there can be one; the run says that it was left out."""
    if (reason := missing("docker")) is not None:
        request.config.stash[left_out][f"`docker`: {reason}"] += 1
        yield None
        return
    with DockerDaemon(Path(tempfile.mkdtemp(prefix="gurney-docker-"))) as running:
        yield running


@pytest.fixture
def images(daemon: DockerDaemon | None) -> dict[str, str]:
    """What runs on the daemon: kind -> reference."""
    if daemon is None:
        return {}
    with contextlib.closing(daemon.client()) as client:
        return make_images(client)


@pytest.fixture
def stack(tmp_path: Path, starts: Path, daemon: DockerDaemon | None) -> Iterator[Stack]:
    """A stack of two hosts."""
    (tmp_path / "maps").mkdir()
    environment = ENVIRONMENT | {"GURNEY_DOCKER_URL": daemon.url if daemon else "none"}
    with Stack(tmp_path / "data", make_maps(tmp_path / "maps", starts), environment) as running:
        yield running


@pytest.fixture
async def breaking(stack: Stack, daemon: DockerDaemon | None) -> AsyncIterator[BreakingStack]:
    server = BreakingStack(stack, daemon)
    server.meet(stack.url, stack.token)
    yield server
    await server.leave()


@pytest.mark.slow
@pytest.mark.needs("mongo", "minio")
@pytest.mark.timeout(3600)
async def test_faults(
    breaking: BreakingStack,
    starts: Path,
    images: dict[str, str],
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whichever part is killed or rests, accepted jobs run once and end, acknowledged files stay, handlers are told."""
    seed = int(os.environ.get("GURNEY_SEED") or random.SystemRandom().randrange(2**32))
    each = int(os.environ.get("GURNEY_KILLS") or KILLS[request.config.getoption("--profile")])
    with capsys.disabled():
        print(f"\nGURNEY_SEED={seed}, {each} of each kind")
    rng = random.Random(seed)
    kinds = [kind for kind in KINDS if kind != "dockerd" or breaking.daemon]
    load, listener, twins = Load(breaking, seed, has_images=bool(images)), Listener(), Twins()
    began = time.monotonic()
    async with listener.listening() as url:
        await prepare(breaking, listener, url, images)
        faults = kinds * each
        rng.shuffle(faults)
        async with twins.watching(), load.running():
            for kind in faults:
                await breaking.befall(kind, rng)
        killed = time.monotonic()
        found = await checks.eventually(lambda: checks.stuck(breaking, load))
        found += await checks.eventually(lambda: checks.untold(load, listener))
        found += await checks.jobs_are_right(breaking, load, starts, lossy=False)
        found += await checks.results_are_right(breaking, load)
        found += await checks.files_are_right(breaking, load)
        found += await checks.eventually(lambda: unsettled(breaking.stack))
        found += await checks.eventually(lambda: orphans(breaking.daemon))
        found += checks.told_once(load, listener) + load.faults + twins.faults
    with capsys.disabled():
        print(breaking.table())
        contained = sum(job.kind in images for job in load.jobs.values())
        print(f"{len(load.jobs)} jobs ({contained} in containers), {len(load.files)} files, {listener.times} webhooks")
        print(f"{killed - began:.0f} s of faults, {time.monotonic() - killed:.0f} s until all was over")
    assert not found, "\n".join(found[:50])
    assert [kind for kind in kinds if not breaking.done[kind]] == []


class Twins:
    """Looks out for two containers of one job that live at the same time, through the host, which no daemon keeps."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        async def watch() -> None:
            while True:
                self.faults += await asyncio.to_thread(twins)
                await asyncio.sleep(0.2)

        task = asyncio.create_task(watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])


def twins() -> list[str]:
    """Return the jobs that have processes in more than one container."""
    here, containers = Path("/proc/self/ns/pid").readlink(), defaultdict(set)
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (process / "environ").read_bytes().split(b"\0")
            job = next((each for each in variables if each.startswith(b"GURNEY_JOB_ID=")), None)
            if job and (container := (process / "ns" / "pid").readlink()) != here:
                containers[job.decode()].add(str(container))
    return [f"{job} lives in {len(found)} containers" for job, found in containers.items() if len(found) > 1]


async def orphans(daemon: DockerDaemon | None) -> list[str]:
    """Return the containers that are of no use any more."""
    return await asyncio.to_thread(_orphans, daemon) if daemon else []


def _orphans(daemon: DockerDaemon) -> list[str]:
    with contextlib.closing(daemon.client()) as client:
        found = client.containers(all=True)
    return [
        f"container {each['Names']} is left" for each in found if {RUN_LABEL, INSPECT_LABEL} & each["Labels"].keys()
    ]
