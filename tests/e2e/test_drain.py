"""Nodes that are drained and resumed: what runs there, what waits, and what of it outlives a restart."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gurney.testing.embedded import EmbeddedProcess
from tests.e2e import work
from tests.e2e.api import Api, Json


def gated(gate: Path) -> str:
    """Return a script that ends when a file comes to be."""
    return f"until [ -e {gate} ]; do sleep 0.05; done"


@asynccontextmanager
async def drained(admin: Api) -> AsyncIterator[Json]:
    """Drain the one node of a server that others use, too."""
    (node,) = (await admin.get("/v1/nodes")).must(200).items
    try:
        yield (await admin.post(f"/v1/nodes/{node['id']}/drain")).must(200).json
    finally:
        (await admin.post(f"/v1/nodes/{node['id']}/resume")).must(200)


async def test_drain(api: Api, admin: Api, tmp_path: Path) -> None:
    """The run that a drained node has succeeds; a job that waits says why, and starts when the node is resumed."""
    running = await work.begin(api, gated(tmp_path / "gate"))
    async with admin.events("/v1/events?types=node.drained,node.resumed") as events:
        async with drained(admin) as node:
            assert (node["id"], node["state"], node["drained"]) == (running["node"], "draining", True)
            assert node["used"]["cpu"] > 0
            waiting = await work.submit(api, running["map"]["id"], {"run.sh": "true"})
            found = await work.until(api, waiting["id"], lambda job: job["waiting"] is not None)
            reasons = [{"code": "draining", "count": 1, "message": "the node takes no new jobs"}]
            assert (found["state"], found["waiting"]["reasons"]) == ("requested", reasons)
            asked = {"map": running["map"]["id"], "payload": waiting["payload"], "admission": "reject"}
            refused = (await api.post("/v1/jobs", asked, case="the node is drained")).must(503, "no_room")
            assert "draining" in refused.json["detail"]
            (tmp_path / "gate").touch()
            assert (await work.ended(api, running["id"]))["state"] == "succeeded"
            assert (await api.get(f"/v1/jobs/{waiting['id']}")).json["state"] == "requested"
            again = (await admin.post(f"/v1/nodes/{node['id']}/drain")).must(200).json
            assert (again["state"], again["used"]["cpu"]) == ("draining", 0)
            (listed,) = (await api.get("/v1/nodes")).items
            assert (listed["state"], listed["drained"]) == ("draining", True)
        async with asyncio.timeout(work.PATIENCE_S):
            assert [(await anext(events)).type for _ in range(2)] == ["node.drained", "node.resumed"]
    assert (await work.ended(api, waiting["id"]))["state"] == "succeeded"
    assert (await api.get(f"/v1/nodes/{node['id']}")).json["state"] == "ready"


@pytest.mark.slow
async def test_drained_over_a_restart(own_server: EmbeddedProcess, tmp_path: Path) -> None:
    """A server that was killed comes back with its node drained, and with the run that the node had."""
    async with Api(own_server.url, own_server.token) as api:
        running = await work.begin(api, gated(tmp_path / "gate"))
        (await api.post(f"/v1/nodes/{running['node']}/drain")).must(200)
    await asyncio.to_thread(own_server.kill)
    await asyncio.to_thread(own_server.start)
    async with Api(own_server.url, own_server.token) as api:
        waiting = await work.submit(api, running["map"]["id"], {"run.sh": "true"})
        found = await work.until(api, waiting["id"], lambda job: job["waiting"] is not None)
        assert found["waiting"]["reasons"][0]["code"] == "draining"
        (tmp_path / "gate").touch()
        done = await work.ended(api, running["id"])
        assert (done["state"], done["attempt"]) == ("succeeded", 1)
        (await api.post(f"/v1/nodes/{running['node']}/resume")).must(200)
        assert (await work.ended(api, waiting["id"]))["state"] == "succeeded"
