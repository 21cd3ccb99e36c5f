"""Edge, agent and payload service over a real S3 server: bytes in, out, packed, given up; and while it is away."""

import asyncio
import hashlib
import io
import os
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession

from gurney import subjects as s
from gurney.documents.sqlite import SqliteDocuments
from gurney.ids import new_id
from gurney.objects import calls
from gurney.objects.choice import objects_of
from gurney.objects.s3 import S3Objects
from gurney.service import Parts, Service
from gurney.settings import Settings
from gurney.testing.nats import NatsServer
from gurney.testing.s3 import S3Server, a_bucket
from services.agent.effects import Counts
from services.agent.folders import Work
from services.agent.staging import Source, Staging
from services.agent.upload import Uploader
from services.edge import server as edge_server
from services.edge.__main__ import build as build_edge
from services.edge.server import EdgeService
from services.payload.__main__ import build as build_payload
from tests.payload_builders import SECRET, Asker, Jobs, token_of

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]
MIB = 1 << 20
ADMIN = "gurney_administrator"


@dataclass
class House(Asker):
    """Who serves, and what they stand on."""

    edge: EdgeService
    payload: Service
    objects: S3Objects
    jobs: Jobs
    session: ClientSession

    def request(self, method: str, path: str, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {ADMIN}"} | options.pop("headers", {})
        return self.session.request(method, f"{self.edge.url}/v1/{path}", headers=headers, **options)

    async def send(self, path: str, data: Any) -> tuple[int, dict[str, Any]]:
        data = io.BytesIO(data) if isinstance(data, bytes) else data
        async with self.request("PUT", f"payloads/{path}", data=data) as response:
            told = await response.json()
            response.close()  # it may come before all was sent
            return response.status, told

    async def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        async with self.request("GET", f"payloads/{path}", headers=headers) as response:
            return response.status, await response.read()

    async def keys(self) -> list[str]:
        return [info.key async for info in self.objects.list()]

    async def parts(self) -> list[str]:
        return [upload.key async for upload in self.objects._uploads()]


@asynccontextmanager
async def a_house(nats_url: str, server: S3Server, folder: Path, **more: Any) -> AsyncIterator[House]:
    more |= server.settings(a_bucket())
    settings = Settings(nats_url=nats_url, data=folder, port=0, run_secret=SECRET, reconcile_interval=3600, **more)
    documents = SqliteDocuments(folder / "documents.sqlite", sync="normal")
    objects, jobs = objects_of(settings), Jobs()
    assert isinstance(objects, S3Objects)
    job = Service("job", settings).does(Parts(answers={s.JOB_ALIVE: jobs.alive}))
    payload = build_payload(settings, documents=documents, objects=objects)
    edge = build_edge(settings, documents=documents, admin_token=ADMIN)
    async with job, payload, edge, ClientSession() as session:
        yield House(edge.bus, edge, payload, objects, jobs, session)
    await documents.close()


@pytest.fixture(autouse=True)
def quick_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose client was refused before it had sent all is not waited for."""
    monkeypatch.setattr(edge_server, "SHUTDOWN_S", 0.5)


@pytest.fixture(
    params=[
        pytest.param("minio", marks=pytest.mark.needs("minio")),
        pytest.param("versitygw", marks=pytest.mark.needs("versitygw")),
    ]
)
async def house(request: pytest.FixtureRequest, nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[House]:
    async with a_house(nats_server.url, request.getfixturevalue(f"{request.param}_server"), tmp_path) as built:
        yield built


@pytest.mark.parametrize("size", [0, 5, 3 * MIB, 20 * MIB + 1])
async def test_a_file_comes_back_whole_and_in_part(house: House, size: int) -> None:
    """What is stored is what was sent, at any size; replaced and removed bytes leave the bucket."""
    made = await house.create()
    content = os.urandom(size)
    status, told = await house.send(f"{made.id}/files/a/x", content)
    assert (status, told["sha256"]) == (201, hashlib.sha256(content).hexdigest())
    assert await house.get(f"{made.id}/files/a/x") == (200, content)
    if size:
        assert await house.get(f"{made.id}/files/a/x", Range="bytes=2-3") == (206, content[2:4])
    (first,) = await house.keys()
    assert (await house.send(f"{made.id}/files/a/x", content))[0] == 200
    (second,) = await house.keys()
    assert second != first
    async with house.request("DELETE", f"payloads/{made.id}/files/a/x") as response:
        assert response.status == 204
    assert await house.keys() == []


async def test_200_mib_go_through_the_edge_in_parts(house: House) -> None:
    """A large body of unknown length goes in parts and comes back verified, without a wait for its end."""
    made = await house.create()
    block = os.urandom(MIB)
    sha256 = hashlib.sha256()

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(200):
            sha256.update(block)
            yield block

    status, told = await house.send(f"{made.id}/files/large", chunks())
    assert (status, told["size"], told["sha256"]) == (201, 200 * MIB, sha256.hexdigest())
    got, size = hashlib.sha256(), 0
    async with house.request("GET", f"payloads/{made.id}/files/large") as response:
        async for chunk in response.content.iter_any():
            got.update(chunk)
            size += len(chunk)
    assert (response.status, size, got.hexdigest()) == (200, 200 * MIB, sha256.hexdigest())
    assert await house.parts() == []


async def test_archives_go_in_and_out(house: House) -> None:
    """A zip becomes files, small and large, and a payload becomes a zip."""
    files = {"a/1.txt": b"one", "empty": b"", "large": os.urandom(9 * MIB)} | {f"many/{n}": b"x" for n in range(40)}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    zipped = {"Content-Type": "application/zip"}
    async with house.request("POST", "payloads", data=io.BytesIO(out.getvalue()), headers=zipped) as response:
        assert response.status == 201, await response.text()
        made = (await response.json())["id"]
    status, packed = await house.get(f"{made}/archive")
    assert status == 200
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files


async def test_a_client_that_goes_away_leaves_nothing(house: House) -> None:
    """An upload that breaks off in its parts leaves neither object nor parts."""
    made = await house.create()

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(MIB)
        while not await house.parts():
            await asyncio.sleep(0.01)
        raise RuntimeError("the client goes away")

    with pytest.raises((ClientError, RuntimeError)):
        await house.send(f"{made.id}/files/x", chunks())
    async with asyncio.timeout(20):
        while await house.parts():
            await asyncio.sleep(0.01)
    assert await house.keys() == []
    assert await house.paths(made.id) == []


async def test_a_deleted_payload_takes_the_parts_of_its_uploads(house: House) -> None:
    """What is under way when a payload is deleted goes with it, and the upload ends with a clear refusal."""
    made = await house.create()

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(MIB)
        while not await house.parts():
            await asyncio.sleep(0.01)
        async with house.request("DELETE", f"payloads/{made.id}") as response:
            assert response.status == 204
        while await house.parts():
            await asyncio.sleep(0.01)
        for _ in range(40):
            yield bytes(MIB)

    status, told = await house.send(f"{made.id}/files/x", chunks())
    assert status in {404, 409, 503}, told
    assert await house.keys() == []
    assert await house.parts() == []


async def test_wrong_bytes_never_look_complete(house: House) -> None:
    """Where the bucket holds other bytes than were stored, a download breaks off instead of ending."""
    made = await house.create()
    await house.send(f"{made.id}/files/x", bytes(3 * MIB))
    (key,) = await house.keys()
    bucket = house.objects._account.bucket
    await asyncio.to_thread(house.objects._sdk.put_object, bucket, key, io.BytesIO(b"x" * 3 * MIB), 3 * MIB)
    with pytest.raises(ClientError):
        await house.get(f"{made.id}/files/x")


async def test_an_agent_stages_and_carries_home(house: House, tmp_path: Path) -> None:
    """A run's input comes from the bucket and its output goes there, small and in parts, by the run's token alone."""
    made = await house.create()
    inputs = {"a/small": b"x", "large": os.urandom(70 * MIB), "none": b""}
    for path, content in inputs.items():
        await house.send(f"{made.id}/files/{path}", content)
    job = new_id("job")
    await house.claim(made.id, job)
    token = token_of(job, made.id)

    work = Work(tmp_path, "run")
    await asyncio.to_thread(work.make)
    source = Source(made.id, token)
    staging = Staging(house.bus, source, work.input, lanes=asyncio.Semaphore(4), patience_s=10)
    await staging.bring(Counts())
    assert {path: (work.input / path).read_bytes() for path in inputs} == inputs

    sources = {}
    for path, content in inputs.items():
        written = work.output / path
        written.parent.mkdir(exist_ok=True, parents=True)
        written.write_bytes(content)
        sources[path] = written
    uploader = Uploader(house.bus, token, asyncio.Semaphore(4), 10)
    stored = await uploader.store("results", sources, Counts())
    assert {each.path: each.size for each in stored} == {path: len(content) for path, content in inputs.items()}
    results = await house.end(made.id, job, f"{job}-1")
    assert results
    assert set(await house.paths(results)) == set(inputs)
    assert await house.get(f"{results}/files/large") == (200, inputs["large"])


@pytest.mark.parametrize(
    "server",
    [
        pytest.param("minio", marks=pytest.mark.needs("minio")),
        pytest.param("versitygw", marks=pytest.mark.needs("versitygw")),
    ],
)
async def test_clients_are_sent_to_the_store_where_they_may_be(
    request: pytest.FixtureRequest, nats_server: NatsServer, tmp_path: Path, server: str
) -> None:
    """With `s3_redirect` a client fetches a file, or a part of it, from the store, which a browser only saves."""
    store = request.getfixturevalue(f"{server}_server")
    async with a_house(nats_server.url, store, tmp_path, s3_redirect=True) as house:
        made = await house.create()
        content = os.urandom(MIB)
        await house.send(f"{made.id}/files/a/ä b.html", content)
        await house.send(f"{made.id}/files/empty/", b"")
        path = f"payloads/{made.id}/files/a/ä b.html"
        async with house.request("GET", path, allow_redirects=False) as response:
            assert (response.status, response.headers["Cache-Control"]) == (307, "no-store")
            assert response.headers["Location"].startswith(f"{store.url}/")
        async with house.request("GET", path) as response:
            assert (response.status, await response.read()) == (200, content)
            assert response.headers["Content-Type"] == "application/octet-stream"
            assert response.headers["Content-Disposition"].startswith("attachment; filename=")
        async with house.request("GET", path, headers={"Range": "bytes=2-5"}) as response:
            assert (response.status, await response.read()) == (206, content[2:6])
        async with house.request("HEAD", path, allow_redirects=False) as response:
            assert (response.status, response.headers["Content-Length"]) == (200, str(MIB))
        assert await house.get(f"{made.id}/files/empty/") == (200, b"")
        assert (await house.get(f"{made.id}/archive"))[0] == 200


@pytest.mark.needs("minio")
async def test_while_the_store_is_away_clients_are_told(
    nats_server: NatsServer, own_minio: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploads and downloads answer 503 with one clear line, nothing is left of them, and all comes back by itself."""
    monkeypatch.setattr(calls, "PATIENCE_S", 0.3)
    async with a_house(nats_server.url, own_minio, tmp_path) as house:
        made = await house.create()
        assert (await house.send(f"{made.id}/files/there", b"there"))[0] == 201
        await asyncio.to_thread(own_minio.kill)
        for size in (5, 9 * MIB):
            status, problem = await house.send(f"{made.id}/files/x", bytes(size))
            assert (status, problem["code"]) == (503, "store_unavailable"), problem
            assert "object store" in problem["detail"]
        assert (await house.get(f"{made.id}/files/there"))[0] == 503
        assert (await house.get(f"{made.id}/archive"))[0] == 503
        await asyncio.to_thread(own_minio.start)
        assert await house.get(f"{made.id}/files/there") == (200, b"there")
        assert (await house.send(f"{made.id}/files/x", bytes(9 * MIB)))[0] == 201
        assert await house.paths(made.id) == ["there", "x"]
