"""A server that is killed while it unpacks an archive: what became of the archive is all of it, or nothing."""

import asyncio
import hashlib
import io
import zipfile
from pathlib import Path

import aiohttp
import pytest

from gurney.testing.embedded import EmbeddedProcess
from tests.e2e import work
from tests.e2e.api import Answer, Api
from tests.e2e.kill_embedded import unsettled

#: Several batches of files, each with bytes of its own.
FILES = {f"series-{n % 7}/{n:04}.dcm": f"slice {n}".encode() * 40 for n in range(1500)}
#: The kill comes when so many objects are stored: behind the first batch, before the last.
STORED = 600


def archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for path, content in FILES.items():
            packed.writestr(path, content)
    return out.getvalue()


async def send(api: Api) -> Answer:
    headers = {"Content-Type": "application/zip", "Idempotency-Key": "series"}
    return await api.call("POST", "/v1/payloads?name=series", data=archive(), headers=headers)


def stored(data: Path) -> int:
    return sum(1 for _ in (data / "objects" / "objects").glob("*/*/*"))


async def killed_while_unpacking(server: EmbeddedProcess) -> None:
    """Kill the server when a part of the archive is stored, and start it again."""
    async with Api(server.url, server.token) as api:
        sending = asyncio.create_task(send(api))
        async with asyncio.timeout(work.PATIENCE_S):
            while await asyncio.to_thread(stored, server.data) < STORED:
                assert not sending.done()
        await asyncio.to_thread(server.kill)
        with pytest.raises(aiohttp.ClientError):
            await sending
    assert await asyncio.to_thread(stored, server.data) < len(FILES)
    await asyncio.to_thread(server.start)


async def settled(server: EmbeddedProcess, objects: int) -> None:
    """Return when so many objects are left, nothing has still to be done, and nothing lies about."""
    async with asyncio.timeout(work.PATIENCE_S):
        while await asyncio.to_thread(stored, server.data) != objects or await unsettled(server.data):
            await asyncio.sleep(0.05)


async def contents(api: Api, payload: str) -> dict[str, str]:
    return {file["path"]: file["sha256"] for file in await api.all(f"/v1/payloads/{payload}/files?limit=1000")}


async def test_half_an_archive_is_no_payload(own_server: EmbeddedProcess) -> None:
    """Nobody finds what was stored, by list or by name; its bytes go, and the name is free."""
    await killed_while_unpacking(own_server)
    async with Api(own_server.url, own_server.token) as api:
        for query in ("", "?name=series", "?state=draft"):
            assert (await api.get(f"/v1/payloads{query}")).must(200).items == []
        (await api.get("/v1/payloads/series")).must(404)
        await settled(own_server, 0)
        (await api.post("/v1/payloads", {"name": "series"})).must(201)


async def test_a_repetition_brings_the_whole_archive(own_server: EmbeddedProcess) -> None:
    """The same request under the same key, right after the start, makes one payload with every file."""
    await killed_while_unpacking(own_server)
    async with Api(own_server.url, own_server.token) as api:
        first, second = [(await send(api)).must(201).json for _ in range(2)]
        assert (first["id"], first["files"], first["state"]) == (second["id"], len(FILES), "open")
        assert await contents(api, first["id"]) == {
            path: hashlib.sha256(content).hexdigest() for path, content in FILES.items()
        }
        assert [each["id"] for each in (await api.get("/v1/payloads")).items] == [first["id"]]
        await settled(own_server, len(FILES))
