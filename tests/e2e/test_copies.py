"""What nodes keep of MAPs: as long as it is needed, and no longer."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gurney.testing.embedded import EmbeddedProcess
from gurney.testing.stack import Stack
from tests.e2e import work
from tests.e2e.api import Api, Json
from tests.e2e.conftest import ENVIRONMENT
from tests.e2e.servers import Server


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, maps: Path) -> Iterator[Server]:
    """A server of one node that looks often, and waits for some seconds before it lets go."""
    environment = {**ENVIRONMENT, "GURNEY_REQUEST_TIMEOUT": "2", "GURNEY_RECONCILE_INTERVAL": "0.5"}
    folder = tmp_path_factory.mktemp(f"copies-{request.param}") / "data"
    kept = Stack(folder, maps, environment, agents=1) if request.param == "stack" else None
    with kept or EmbeddedProcess(folder, maps, environment) as running:
        yield running


def copies(server: Server) -> set[str]:
    return {f"sha256:{each.name}" for each in (server.hosts[0] / "maps").iterdir() if not each.name.startswith(".")}


def contents(server: Server) -> set[str]:
    return {f"sha256:{each.name}" for each in (server.hosts[0] / "agent" / "content").iterdir() if not each.suffix}


async def with_content(api: Api) -> Json:
    """Register a MAP that brings something along, and run it once."""
    models = await work.payload(api, {"weights": b"w" * 1000})
    description = {"command": ["true"], "content": {"payload": models, "path": "/opt/models"}}
    made = await work.register(api, "no-command", description=description)
    assert (await work.ended(api, (await work.submit(api, made["id"]))["id"]))["state"] == "succeeded"
    return made


async def test_copies_go_with_their_maps(api: Api, server: Server, tmp_path: Path) -> None:
    """Copies and static content of former MAPs and of dry runs go; those of a MAP with a live job stay, whole."""
    former = await with_content(api)
    tried = (await api.post("/v1/maps?dry_run=true", {"urn": "urn:gurney:dir:brief"})).must(200).json
    waits = f"until [ -e {tmp_path}/go ]; do sleep 0.05; done; cat app.json"
    job = await work.begin(api, waits)
    digests = former["digest"], tried["digest"], job["map"]["digest"]
    assert set(digests) <= await asyncio.to_thread(copies, server)
    assert await asyncio.to_thread(contents, server) == {former["description"]["content"]["digest"]}
    (await api.delete(f"/v1/maps/{job['map']['id']}", case="live job")).must(409, "map_in_use")
    (await api.delete(f"/v1/maps/{former['id']}")).must(204)

    async with asyncio.timeout(work.PATIENCE_S):
        while await asyncio.to_thread(copies, server) != {job["map"]["digest"]}:
            await asyncio.sleep(0.1)
        while await asyncio.to_thread(contents, server):
            await asyncio.sleep(0.1)
    await asyncio.to_thread((tmp_path / "go").touch)
    ended = await work.ended(api, job["id"])
    assert ended["state"] == "succeeded", ended
    assert json.loads(await work.log(api, ended))["command"]
