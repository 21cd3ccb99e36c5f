"""Disks that are full: of the host that runs jobs, of the object store, of JetStream.

Nothing that was accepted is lost, nothing is told as a success that may be none, refusals say so, and all goes on when
there is room again.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gurney.testing.disk import SmallDisk
from gurney.testing.stack import Stack
from tests.e2e import work
from tests.e2e.api import Api
from tests.e2e.applications import make_maps
from tests.e2e.conftest import ENVIRONMENT

pytestmark = [pytest.mark.slow, pytest.mark.needs("mongo", "minio", "tmpfs")]

MIB = 1024**2
OUT = "$HOLOSCAN_OUTPUT_PATH"
AWAY = 503


class Site:
    """A stack of one host, each of whose disks is small."""

    def __init__(self, data: Path, maps: Path) -> None:
        self.stack = Stack(
            data,
            maps,
            ENVIRONMENT | {"GURNEY_RECONCILE_INTERVAL": "2", "GURNEY_EVENTS_MAX_BYTES": str(16 * MIB)},
            replicas=1,
            agents=1,
        )
        self.host = SmallDisk(data / "node-1", 48 * MIB)
        self.objects = SmallDisk(data / "minio", 512 * MIB)
        self.events = SmallDisk(data / "nats", 1024 * MIB)

    @contextmanager
    def running(self) -> Iterator["Site"]:
        with ExitStack() as open_:
            for disk in (self.host, self.objects, self.events):
                open_.enter_context(disk)
            open_.enter_context(self.stack)
            yield self


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("full")
    (folder / "maps").mkdir()
    with Site(folder / "data", make_maps(folder / "maps")).running() as running:
        yield running


@pytest.fixture
async def api(site: Site) -> AsyncIterator[Api]:
    """The administrator; afterwards there is room on every disk."""
    async with Api(site.stack.url, site.stack.token) as client:
        yield client
    for disk in (site.host, site.objects, site.events):
        disk.empty()


async def test_run_that_fills_the_disk(api: Api) -> None:
    """A run that writes more than there is room for fails with its exit code, the reason says why, and room is made."""
    job = await work.shell(api, f"head -c {100 * MIB} /dev/zero > {OUT}/big")
    assert (job["state"], job["reason"]["code"]) == ("failed", "exit_nonzero")
    assert "disk" in job["reason"]["message"]
    assert (await work.shell(api, f"echo x > {OUT}/x"))["state"] == "succeeded"


async def test_run_that_does_not_see_that_the_disk_is_full(api: Api) -> None:
    """What an application wrote to a full disk is no result, though its exit code is 0; the reason says so."""
    job = await work.shell(api, f"head -c {100 * MIB} /dev/zero > {OUT}/big; exit 0")
    assert (job["state"], job["reason"]["code"]) == ("failed", "output_unavailable")
    assert "disk" in job["reason"]["message"]
    assert (await work.shell(api, f"echo x > {OUT}/x"))["state"] == "succeeded"


async def test_no_room_to_take_a_run_on(api: Api, site: Site) -> None:
    """A job that finds the host's disk full waits, and runs when there is room."""
    made = await work.register(api, "shell")
    site.host.fill()
    job = await work.submit(api, made["id"], {"run.sh": f"echo x > {OUT}/x"})
    await asyncio.sleep(5)  # several tries
    assert (await api.get(f"/v1/jobs/{job['id']}")).must(200).json["state"] in {"requested", "scheduled"}
    site.host.empty()
    job = await work.ended(api, job["id"])
    assert (job["state"], job["attempt"]) == ("succeeded", 1), job["reason"]


async def test_disk_that_fills_up_during_a_run(api: Api, site: Site) -> None:
    """A run whose host's disk was full at its end is tried again."""
    script = f"while [ ! -e {site.stack.data}/go ]; do sleep 0.05; done; echo x > {OUT}/x; exit 0"
    job = await work.begin(api, script)
    site.host.fill()
    (site.stack.data / "go").touch()
    await work.until(api, job["id"], lambda found: found["attempt"] > 1 or found["state"] in {"succeeded", "failed"})
    site.host.empty()
    job = await work.ended(api, job["id"])
    assert job["attempt"] > 1
    assert (job["state"], await work.result(api, job, "x")) == ("succeeded", b"x\n"), job["reason"]


async def test_object_store_is_full(api: Api, site: Site) -> None:
    """An upload is refused as one to be tried again, what lies there is read; runs wait with what they wrote."""
    payload = await work.payload(api, {"before": b"kept"})
    made = await work.register(api, "shell")
    script = f"while [ ! -e {site.stack.data}/full ]; do sleep 0.05; done; echo x > {OUT}/x"
    job = await work.submit(api, made["id"], {"run.sh": script})
    await work.until(api, job["id"], lambda found: found["state"] == "running")
    site.objects.fill()
    (site.stack.data / "full").touch()
    for size in (1, MIB):
        refused = (await api.put(f"/v1/payloads/{payload}/files/more", b"x" * size)).must(503, "store_unavailable")
        assert int(refused.headers["Retry-After"]) >= 1
        assert "full" in refused.json["detail"]
    assert (await api.get(f"/v1/payloads/{payload}/files/before")).must(200).body == b"kept"
    (await api.get(f"/v1/payloads/{payload}/files/more")).must(404)
    assert (await api.get(f"/v1/jobs/{job['id']}")).must(200).json["state"] == "running"
    site.objects.empty()
    (await api.put(f"/v1/payloads/{payload}/files/more", b"more")).must(201)
    job = await work.ended(api, job["id"])
    assert (job["state"], job["attempt"], await work.result(api, job, "x")) == ("succeeded", 1, b"x\n")


async def test_event_store_is_full(api: Api, site: Site) -> None:
    """What was accepted while JetStream could store nothing is done once its server was started again with room."""
    made = await work.register(api, "shell")
    site.events.fill()
    jobs = [await work.submit(api, made["id"], {"run.sh": f"echo {n} > {OUT}/n"}) for n in range(3)]
    await asyncio.sleep(3)
    site.events.empty()
    await asyncio.to_thread(site.stack.nats.kill)
    await asyncio.to_thread(site.stack.nats.start)
    async with asyncio.timeout(work.PATIENCE_S):
        while (await api.get(f"/v1/jobs/{jobs[0]['id']}")).status == AWAY:
            await asyncio.sleep(0.1)
    for number, job in enumerate(jobs):
        found = await work.ended(api, job["id"])
        assert (found["state"], found["attempt"]) == ("succeeded", 1), found["reason"]
        assert await work.result(api, found, "n") == f"{number}\n".encode()
