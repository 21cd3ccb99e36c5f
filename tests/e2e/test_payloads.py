"""Payloads and their files, as a client sees them."""

import asyncio
import hashlib
import io
import os
import tarfile
import zipfile
from urllib.parse import quote

import pytest

from tests.e2e import work
from tests.e2e.api import Api

SERIES = {"ct/slice 1.dcm": b"one", "ct/slice 2.dcm": b"two", "notes.txt": "Größe".encode()}


async def upload(api: Api, files: dict[str, bytes]) -> str:
    return await work.payload(api, {quote(path): content for path, content in files.items()})


@pytest.mark.req("MAS-20")
async def test_create(api: Api) -> None:
    """A new payload has an id of its own, is found where Location says, and is empty."""
    first, second = [(await api.post("/v1/payloads", {})).must(201) for _ in range(2)]
    assert first.json["id"] != second.json["id"]
    found = (await api.get(first.headers["Location"])).must(200).json
    assert found["id"] == first.json["id"]
    assert (found["state"], found["files"], found["bytes"]) == ("open", 0, 0)


@pytest.mark.req("MAS-21", "MAS-22")
async def test_upload_and_download(api: Api) -> None:
    """A file comes back byte for byte, with its name, size and digest, however it was sent."""
    content = os.urandom(3_000_000)

    async def pieces() -> object:
        for at in range(0, len(content), 100_000):
            yield content[at : at + 100_000]
            await asyncio.sleep(0)

    made = await work.payload(api)
    path = f"/v1/payloads/{made}/files/a%20folder/scan.bin"
    stored = (await api.call("PUT", path, data=pieces())).must(201).json
    assert (stored["path"], stored["size"]) == ("a folder/scan.bin", len(content))
    assert stored["sha256"] == hashlib.sha256(content).hexdigest()
    loaded = (await api.get(path)).must(200)
    assert loaded.body == content
    assert 'filename="scan.bin"' in loaded.headers["Content-Disposition"]
    assert stored["sha256"] in loaded.headers["ETag"]


async def test_download_of_parts(api: Api) -> None:
    """HEAD tells size and digest, ranges are served, and who has the file already gets 304."""
    made = await upload(api, {"f": b"0123456789"})
    path = f"/v1/payloads/{made}/files/f"
    head = (await api.head(path)).must(200)
    assert head.headers["Content-Length"] == "10"
    part = (await api.get(path, headers={"Range": "bytes=2-4"})).must(206)
    assert (part.body, part.headers["Content-Range"]) == (b"234", "bytes 2-4/10")
    (await api.get(path, headers={"If-None-Match": head.headers["ETag"]})).must(304)
    (await api.get(path, headers={"Range": "bytes=10-"})).must(416, "range_not_satisfiable")


async def test_replace(api: Api) -> None:
    """Another upload to the same path replaces the file and says so by 200."""
    made = await upload(api, {"f": b"old"})
    (await api.put(f"/v1/payloads/{made}/files/f", b"newer")).must(200)
    assert (await api.get(f"/v1/payloads/{made}/files/f")).body == b"newer"
    found = (await api.get(f"/v1/payloads/{made}")).json
    assert (found["files"], found["bytes"]) == (1, 5)


@pytest.mark.req("MAS-23")
async def test_remove_a_file(api: Api) -> None:
    """A removed file is gone from the list, the counts and to every method; the others stay."""
    made = await upload(api, SERIES)
    (await api.delete(f"/v1/payloads/{made}/files/notes.txt")).must(204)
    for method in ("GET", "HEAD", "DELETE"):
        (await api.call(method, f"/v1/payloads/{made}/files/notes.txt")).must(404)
    left = {file["path"] for file in await api.all(f"/v1/payloads/{made}/files")}
    assert left == SERIES.keys() - {"notes.txt"}
    assert (await api.get(f"/v1/payloads/{made}")).json["files"] == 2


@pytest.mark.req("MAS-24")
async def test_delete(api: Api) -> None:
    """A deleted payload and all its files are gone to every method, and its name is free again."""
    made = await upload(api, SERIES)
    (await api.put(f"/v1/payloads/{made}/name", {"name": "head"})).must(200)
    (await api.delete("/v1/payloads/head")).must(204)
    for path in (f"/v1/payloads/{made}", f"/v1/payloads/{made}/files", f"/v1/payloads/{made}/files/notes.txt"):
        (await api.get(path)).must(404, "not_found")
    (await api.delete(f"/v1/payloads/{made}")).must(404)
    assert made not in {each["id"] for each in await api.all("/v1/payloads")}
    (await api.post("/v1/payloads", {"name": "head"})).must(201)


@pytest.mark.req("MAS-25")
async def test_list(api: Api) -> None:
    """Payloads are listed newest first, page by page, and every filter takes out what does not match."""
    made = []
    for number in range(5):
        labels = {"site": "north" if number % 2 else "south", "n": str(number)}
        made.append((await api.post("/v1/payloads", {"name": f"p{number}", "labels": labels})).must(201).json)
    ids = [each["id"] for each in reversed(made)]
    assert [each["id"] for each in await api.all("/v1/payloads?limit=2")] == ids
    assert [each["name"] for each in await api.all("/v1/payloads?name=p3")] == ["p3"]
    assert [each["name"] for each in await api.all("/v1/payloads?label=site%3Dnorth&label=n%3D1")] == ["p1"]
    after, before = made[0]["created_at"], made[3]["created_at"]
    between = await api.all(f"/v1/payloads?created_after={after}&created_before={before}&state=open")
    assert {"p1", "p2"} <= {each["name"] for each in between}
    assert "p4" not in {each["name"] for each in between}
    assert await api.all("/v1/payloads?state=draft") == []


@pytest.mark.req("MAS-26")
async def test_names(api: Api) -> None:
    """A payload is named, found by its name, renamed and unnamed; a name is held by one at a time."""
    first, second = await work.payload(api), await work.payload(api)
    (await api.put(f"/v1/payloads/{first}/name", {"name": "brain"})).must(200)
    (await api.put(f"/v1/payloads/{second}/name", {"name": "brain"}, case="name taken")).must(409, "name_taken")
    (await api.post("/v1/payloads", {"name": "brain"}, case="name taken")).must(409, "name_taken")
    assert (await api.put("/v1/payloads/brain/name", {"name": "Gehirn Süd"})).must(200).json["name"] == "Gehirn Süd"
    (await api.get("/v1/payloads/brain")).must(404)
    assert (await api.get(f"/v1/payloads/{quote('Gehirn Süd')}")).must(200).json["id"] == first
    (await api.put(f"/v1/payloads/{second}/name", {"name": "brain"})).must(200)
    (await api.delete(f"/v1/payloads/{first}/name")).must(204)
    assert (await api.get(f"/v1/payloads/{first}")).json["name"] is None


@pytest.mark.req("MAS-27")
async def test_status(api: Api) -> None:
    """A payload tells count, bytes and the jobs that hold it; its list tells each file's checksum."""
    made = await work.register(api, "shell")
    job = await work.submit(api, made["id"], {"run.sh": "sleep 30", "more": b"12345"})
    found = (await api.get(f"/v1/payloads/{job['payload']}")).must(200).json
    assert (found["files"], found["bytes"], found["held_by"]) == (2, 13, [job["id"]])
    files = {file["path"]: file for file in await api.all(f"/v1/payloads/{job['payload']}/files?limit=1")}
    assert files["more"]["sha256"] == hashlib.sha256(b"12345").hexdigest()
    assert files["run.sh"]["size"] == 8
    (await api.post(f"/v1/jobs/{job['id']}/cancel")).must(202)
    await work.ended(api, job["id"])
    assert (await api.get(f"/v1/payloads/{job['payload']}")).json["held_by"] == []


async def test_files_by_prefix(api: Api) -> None:
    """Files are listed in the order of their paths, below a prefix where one is given."""
    made = await upload(api, SERIES)
    paths = [file["path"] for file in await api.all(f"/v1/payloads/{made}/files?limit=2")]
    assert paths == sorted(SERIES)
    below = [file["path"] for file in await api.all(f"/v1/payloads/{made}/files?prefix=ct/")]
    assert below == ["ct/slice 1.dcm", "ct/slice 2.dcm"]


async def test_archive_out(api: Api) -> None:
    """All files of a payload come as a zip, or as a tar where Accept asks for one."""
    made = await upload(api, SERIES)
    packed = (await api.get(f"/v1/payloads/{made}/archive")).must(200)
    with zipfile.ZipFile(io.BytesIO(packed.body)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == SERIES
    packed = (await api.get(f"/v1/payloads/{made}/archive", headers={"Accept": "application/x-tar"})).must(200)
    with tarfile.open(fileobj=io.BytesIO(packed.body)) as archive:
        files = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        assert {name: file.read() for name, file in files.items() if file} == SERIES


@pytest.mark.parametrize("kind", ["application/zip", "application/x-tar"])
async def test_archive_in(api: Api, kind: str) -> None:
    """A zip or tar body becomes a payload with its files; one that leads out of it leaves nothing behind."""
    made = (await api.post("/v1/payloads?name=packed", _packed(kind, SERIES), headers={"Content-Type": kind})).must(201)
    found = (await api.get(f"/v1/payloads/{made.json['id']}")).json
    assert (found["name"], found["files"]) == ("packed", 3)
    assert (await api.get(f"/v1/payloads/packed/files/{quote('ct/slice 2.dcm')}")).body == b"two"
    bad = _packed(kind, {"good": b"1", "../bad": b"2"})
    (await api.post("/v1/payloads", bad, headers={"Content-Type": kind})).must(422)
    (await api.post("/v1/payloads", b"no archive at all", headers={"Content-Type": kind})).must(422)
    assert [each["name"] for each in await api.all("/v1/payloads")] == ["packed"]


def _packed(kind: str, files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    if kind == "application/zip":
        with zipfile.ZipFile(out, "w") as archive:
            for path, content in files.items():
                archive.writestr(path, content)
    else:
        with tarfile.open(fileobj=out, mode="w") as archive:
            for path, content in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


async def test_interrupted_upload(api: Api) -> None:
    """An upload that breaks off leaves no file, and the path can be used at once."""
    made = await work.payload(api)
    path = f"/v1/payloads/{made}/files/scan"
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
    head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.token}\r\nContent-Length: 1000000\r\n\r\n"
    writer.write(head.encode() + b"x" * 300_000)
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    del reader
    (await api.get(path)).must(404)
    (await api.put(path, b"whole")).must(201)
    assert (await api.get(f"/v1/payloads/{made}")).json["bytes"] == 5


async def test_empty_folder(api: Api) -> None:
    """A path that ends in a slash is an empty folder: listed, not counted."""
    made = await work.payload(api)
    (await api.put(f"/v1/payloads/{made}/files/a/b/", b"")).must(201)
    assert [file["path"] for file in await api.all(f"/v1/payloads/{made}/files")] == ["a/b/"]
    assert (await api.get(f"/v1/payloads/{made}")).json["files"] == 0


async def test_repeated_creation(api: Api) -> None:
    """The same Idempotency-Key makes one payload; another body under it is refused."""
    key = {"Idempotency-Key": "once"}
    answers = await asyncio.gather(*(api.post("/v1/payloads", {"labels": {"a": "b"}}, headers=key) for _ in range(4)))
    assert {answer.must(201).json["id"] for answer in answers} == {answers[0].json["id"]}
    assert len(await api.all("/v1/payloads")) == 1
    (await api.post("/v1/payloads", {"labels": {}}, headers=key)).must(422, "idempotency_key_reused")
