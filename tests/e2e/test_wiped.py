"""JetStream loses all that it stored while many jobs wait: they are found in the documents, and each runs once."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gurney.testing.embedded import EmbeddedProcess
from gurney.testing.folder_maps import make_map
from gurney.testing.stack import Stack
from tests.e2e import kill_checks as checks
from tests.e2e.kill_embedded import MortalServer
from tests.e2e.kill_load import TERMINAL
from tests.e2e.kill_server import Insistent

#: How many wait.
JOBS = 1000
#: Clients who submit them.
CLIENTS = 8
PATIENCE_S = 600
ENVIRONMENT = {"GURNEY_CPU": "2", "GURNEY_DOCKER_URL": "none"}

Json = dict[str, Any]


class Site(Insistent, ABC):
    """A server, and clients who ask again until they are answered."""

    is_late = True

    @abstractmethod
    async def start(self) -> None:
        """Start it."""

    @abstractmethod
    async def stop(self) -> None:
        """End it."""

    @abstractmethod
    async def wipe(self) -> None:
        """Have nats-server end, lose what it stored, and start again."""

    async def post(self, path: str, body: Json | None = None, key: str = "") -> Json:
        """Ask until it is answered; `key` makes it one request."""
        answer = await self.insist("POST", path, json=body, headers={"Idempotency-Key": key} if key else {})
        assert answer.status in {200, 201, 202}, answer.body
        return dict(answer.json)

    async def items(self, path: str) -> list[Json]:
        return await checks.all_items(self, path)


class Embedded(Site):
    """The server in one process: it goes down with its nats-server."""

    def __init__(self, folder: Path, maps: Path) -> None:
        super().__init__()
        self._process = EmbeddedProcess(folder, maps, ENVIRONMENT)

    async def start(self) -> None:
        await asyncio.to_thread(self._process.start)
        self.meet(self._process.url, self._process.token)

    async def stop(self) -> None:
        await self.leave()
        await asyncio.to_thread(self._process.stop)

    async def wipe(self) -> None:
        self.up.clear()
        await self.leave()
        await asyncio.to_thread(self._process.kill)
        await MortalServer(self._process).wipe()
        await self.start()


class Services(Site):
    """The stack: its schedulers go down with nats-server, and what they knew with them; the others live on."""

    def __init__(self, folder: Path, maps: Path) -> None:
        super().__init__()
        self._stack = Stack(folder, maps, ENVIRONMENT)

    async def start(self) -> None:
        await asyncio.to_thread(self._stack.start)
        self.meet(self._stack.url, self._stack.token)

    async def stop(self) -> None:
        await self.leave()
        await asyncio.to_thread(self._stack.stop)

    async def wipe(self) -> None:
        stack = self._stack
        schedulers = [stack.processes[name] for name in stack.of("scheduler")]
        for step in (
            *(each.kill for each in schedulers),
            stack.nats.kill,
            stack.nats.wipe,
            stack.nats.start,
            *(each.start for each in schedulers),
        ):
            await asyncio.to_thread(step)


@pytest.fixture
def starts(tmp_path: Path) -> Path:
    return tmp_path / "starts"


@pytest.fixture(params=[Embedded, pytest.param(Services, marks=pytest.mark.needs("mongo", "minio"))])
def made(request: pytest.FixtureRequest, tmp_path: Path, starts: Path) -> Site:
    """A server with a MAP that does nothing but note its start."""
    note = f'echo "$GURNEY_JOB_ID $GURNEY_ATTEMPT $$ start" >> "{starts}"'
    make_map(tmp_path / "maps", "noop", ["/bin/sh", "-c", note], resources={"cpu": 0.2, "memory": "16Mi"})
    kind: Callable[[Path, Path], Site] = request.param
    return kind(tmp_path / "data", tmp_path / "maps")


@pytest.fixture
async def site(made: Site) -> AsyncIterator[Site]:
    """The server, running."""
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_all_of_jetstream_is_wiped(site: Site, starts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Jobs that waited, and those that ran when it was wiped once more, all succeed, each started once."""
    await site.post("/v1/maps", {"urn": "urn:gurney:dir:noop", "name": "noop"}, "map")
    while [found["state"] for found in await site.items("/v1/maps")] != ["ready"]:
        await asyncio.sleep(0.05)
    nodes = await site.items("/v1/nodes")
    for node in nodes:
        await site.post(f"/v1/nodes/{node['id']}/drain")
    data = await site.post("/v1/payloads", {}, "payload")
    jobs = await submitted(site, data["id"])
    assert not starts.exists()
    await site.wipe()
    for node in nodes:
        await site.post(f"/v1/nodes/{node['id']}/resume")
    began = time.monotonic()
    await ended(site, JOBS // 3)
    await site.wipe()
    done = await ended(site, JOBS)
    with capsys.disabled():
        print(f"\n{JOBS} jobs, wiped twice: {time.monotonic() - began:.0f} s until all had ended")
    assert {job["id"] for job in done} == jobs
    assert {(job["state"], job["attempt"]) for job in done} == {("succeeded", 1)}
    assert checks.started_runs(starts) == Counter((job, 1) for job in jobs)


async def submitted(site: Site, payload: str) -> set[str]:
    """Submit jobs, several at a time."""
    numbers = iter(range(JOBS))

    async def client() -> list[str]:
        body = {"map": "noop", "payload": payload}
        return [(await site.post("/v1/jobs", body, f"job-{number}"))["id"] for number in numbers]

    found = await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return {job for jobs in found for job in jobs}


async def ended(site: Site, least: int) -> list[Json]:
    """Return the jobs that have ended, as soon as there are so many."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            done = [job for job in await site.items("/v1/jobs") if job["state"] in TERMINAL]
            if len(done) >= least:
                return done
            await asyncio.sleep(0.2)
