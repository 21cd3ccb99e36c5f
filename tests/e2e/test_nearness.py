"""Jobs go where their MAP is, if nothing else tells nodes apart."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gurney.testing.embedded import EmbeddedProcess
from gurney.testing.stack import Stack
from tests.e2e import work
from tests.e2e.api import Api, Json
from tests.e2e.conftest import ENVIRONMENT
from tests.e2e.servers import Server

#: Nodes tell soon what they hold.
OFTEN = {"GURNEY_HEARTBEAT_INTERVAL": "0.3"}


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, maps: Path) -> Iterator[Server]:
    """A server of one node, and one of two."""
    folder = tmp_path_factory.mktemp(f"nearness-{request.param}") / "data"
    kind = Stack if request.param == "stack" else EmbeddedProcess
    with kind(folder, maps, ENVIRONMENT | OFTEN) as running:
        yield running


@pytest.fixture
async def nodes(admin: Api, server: Server) -> AsyncIterator[list[str]]:
    """The nodes of the server; drained ones are resumed in the end."""
    async with asyncio.timeout(work.PATIENCE_S):
        while len(found := (await admin.get("/v1/nodes")).must(200).items) < len(server.hosts):
            await asyncio.sleep(0.05)
    yield [node["id"] for node in found]
    for node in found:
        (await admin.post(f"/v1/nodes/{node['id']}/resume")).must(200)


async def holds(admin: Api, node: str, made: Json) -> None:
    """Wait until a node says that it holds a MAP."""
    name = made["digest"].removeprefix("sha256:")[:12]
    async with asyncio.timeout(work.PATIENCE_S):
        while name not in (await admin.get(f"/v1/nodes/{node}")).must(200).json["images"]:
            await asyncio.sleep(0.05)


async def test_jobs_follow_their_map(api: Api, admin: Api, nodes: list[str]) -> None:
    """The node that read the MAP at its registration has its jobs; another that has run one of them holds it, too."""
    first, last = nodes[0], nodes[-1]
    if last != first:
        (await admin.post(f"/v1/nodes/{first}/drain")).must(200)
    made = await work.register(api, "shell")
    await holds(admin, last, made)
    (await admin.post(f"/v1/nodes/{first}/resume")).must(200)
    assert [await ran_on(api, made) for _ in range(3)] == [last] * 3
    if last != first:
        (await admin.post(f"/v1/nodes/{last}/drain")).must(200)
    assert await ran_on(api, made) == first
    (await admin.post(f"/v1/nodes/{last}/resume")).must(200)
    await holds(admin, first, made)
    assert await ran_on(api, made) == first


async def ran_on(api: Api, made: Json) -> str:
    """Return where a job of a MAP runs, once it has ended."""
    job = await work.submit(api, made["id"], {"run.sh": "true"})
    done = await work.ended(api, job["id"])
    assert done["state"] == "succeeded"
    return str(done["node"])
