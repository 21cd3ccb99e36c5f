"""Files through the edge: in, out, in part, conditionally, and what is left when a client goes away."""

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientError

from gurney.model.access import Role
from gurney.testing.nats import NatsServer
from services.edge import respond
from tests.service.edge_house import SECRET, House, house

pytestmark = pytest.mark.timeout(60)
BIG = bytes(range(256)) * 12_000


@pytest.fixture
async def home(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[House]:
    async with house(nats_server.url, tmp_path, max_upload=4 << 20) as built:
        yield built


def objects(home: House) -> list[Path]:
    """What the store holds: objects, and what is being written."""
    root = home.settings.data / "objects"
    return [path for part in ("tmp", "objects") for path in (root / part).rglob("*") if path.is_file()]


async def raw(home: House, head: str, body: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request byte by byte, as no client library would."""
    url = urlsplit(home.edge.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(f"{head}\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\n".encode("utf-8", "surrogateescape") + body)
    await writer.drain()
    return reader, writer


async def status_of(home: House, head: str, body: bytes = b"\r\n") -> tuple[int, bytes]:
    reader, writer = await raw(home, head, b"Connection: close\r\n" + body)
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ", 2)[1]), answer


@pytest.mark.parametrize("content", [b"", b"x", BIG], ids=["empty", "small", "large"])
async def test_what_goes_in_comes_out(home: House, content: bytes) -> None:
    """An upload answers 201 with the file and its tag, a second one 200; the download is what was uploaded."""
    payload = home.payloads.add().id
    digest = hashlib.sha256(content).hexdigest()
    path = f"/v1/payloads/{payload}/files/a/b%20c.dcm"
    async with home.request("PUT", path, data=content) as response:
        file = await response.json()
        assert response.status == 201
        assert response.headers["ETag"] == f'"{digest}"'
    assert (file["path"], file["size"], file["sha256"]) == ("a/b c.dcm", len(content), digest)
    status, again = await home.put(payload, "a/b%20c.dcm", content)
    assert (status, again["sha256"]) == (200, digest)

    status, body, headers = await home.get(path)
    assert (status, body) == (200, content)
    assert headers["ETag"] == f'"{digest}"'
    assert headers["Content-Length"] == str(len(content))
    assert headers["Content-Type"] == "application/dicom"
    assert headers["Accept-Ranges"] == "bytes"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Disposition"] == 'attachment; filename="b c.dcm"'
    assert not home.payloads.abandoned


async def test_who_does_not_read_is_let_go(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that asks for a file and does not take it holds its connection for so long and no longer."""
    monkeypatch.setattr(respond, "STUCK_S", 0.2)
    payload = home.payloads.add().id
    await home.put(payload, "big", BIG)
    url = urlsplit(home.edge.url)
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.settimeout(0)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(stuck, (url.hostname, url.port))
        asked = f"GET /v1/payloads/{payload}/files/big HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\n\r\n"
        await loop.sock_sendall(stuck, asked.encode())
        await asyncio.sleep(1)
        got = 0
        with contextlib.suppress(ConnectionResetError):
            while part := await loop.sock_recv(stuck, 1 << 20):
                got += len(part)
    assert 0 < got < len(BIG)


async def test_a_body_of_unknown_length_is_taken(home: House) -> None:
    """A chunked upload is stored whole."""
    payload = home.payloads.add().id

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(BIG), 100_000):
            yield BIG[at : at + 100_000]

    status, file = await home.put(payload, "x", chunks())
    assert (status, file["size"]) == (201, len(BIG))
    assert (await home.get(f"/v1/payloads/{payload}/files/x"))[1] == BIG


@pytest.mark.parametrize(
    ("asked", "status", "part", "content_range"),
    [
        ("bytes=0-0", 206, BIG[:1], f"bytes 0-0/{len(BIG)}"),
        ("bytes=100-2000100", 206, BIG[100:2000101], f"bytes 100-2000100/{len(BIG)}"),
        ("bytes=-5", 206, BIG[-5:], f"bytes {len(BIG) - 5}-{len(BIG) - 1}/{len(BIG)}"),
        (f"bytes=-{'9' * 40}", 206, BIG, f"bytes 0-{len(BIG) - 1}/{len(BIG)}"),
        ("bytes=3-1", 200, BIG, None),
        (f"bytes={len(BIG)}-", 416, None, f"bytes */{len(BIG)}"),
    ],
)
async def test_a_part_of_a_file(
    home: House, asked: str, status: int, part: bytes | None, content_range: str | None
) -> None:
    """One range gets 206 with just these bytes; one outside gets 416, a problem document that tells the size."""
    payload = home.payloads.add().id
    await home.put(payload, "x", BIG)
    got, body, headers = await home.get(f"/v1/payloads/{payload}/files/x", headers={"Range": asked})
    assert (got, headers.get("Content-Range")) == (status, content_range)
    if part is None:
        assert headers["Content-Type"] == "application/problem+json"
    else:
        assert (body == part, headers["Content-Length"]) == (True, str(len(part)))


async def test_conditions(home: House) -> None:
    """Who has the file gets 304 without it; a range of another version gets the whole."""
    payload = home.payloads.add().id
    await home.put(payload, "x", b"hello")
    path = f"/v1/payloads/{payload}/files/x"
    tag = (await home.get(path))[2]["ETag"]
    status, body, headers = await home.get(path, headers={"If-None-Match": tag})
    assert (status, body, headers["ETag"]) == (304, b"", tag)
    assert (await home.get(path, headers={"Range": "bytes=1-2", "If-Range": tag}))[:2] == (206, b"el")
    assert (await home.get(path, headers={"Range": "bytes=1-2", "If-Range": '"old"'}))[:2] == (200, b"hello")


async def test_head_says_what_get_would_say(home: House) -> None:
    """HEAD has the length, tag and type of the download and no body; a missing file is 404."""
    payload = home.payloads.add().id
    await home.put(payload, "x.txt", BIG)
    async with home.request("HEAD", f"/v1/payloads/{payload}/files/x.txt") as response:
        assert (response.status, await response.read()) == (200, b"")
        assert response.headers["Content-Length"] == str(len(BIG))
        assert response.headers["Content-Type"] == "text/plain"
    async with home.request("HEAD", f"/v1/payloads/{payload}/files/y") as response:
        assert response.status == 404


async def test_an_empty_folder_is_kept_without_bytes(home: House) -> None:
    """A path that ends in / is stored and listed as a folder of size 0; a body with it is refused."""
    payload = home.payloads.add().id
    status, file = await home.put(payload, "empty/", b"")
    assert (status, file["path"], file["size"]) == (201, "empty/", 0)
    assert (await home.get(f"/v1/payloads/{payload}/files/empty/"))[:2] == (200, b"")
    status, problem = await home.put(payload, "full/", b"x")
    assert (status, problem["errors"][0]["field"]) == (422, "body")
    assert home.payloads.abandoned == ["full/"]
    assert not objects(home)


async def test_list_and_remove(home: House) -> None:
    """Files are listed by pages in the order of their paths; a removed one is 404 to every method."""
    payload = home.payloads.add().id
    for name in ("c", "a/1", "a/2", "b", "d"):
        await home.put(payload, name, name.encode())
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        path = f"/v1/payloads/{payload}/files?limit=2" + (f"&cursor={cursor}" if cursor else "")
        async with home.request("GET", path) as response:
            page = await response.json()
        seen += [item["path"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert seen == ["a/1", "a/2", "b", "c", "d"]
    async with home.request("GET", f"/v1/payloads/{payload}/files?prefix=a/") as response:
        assert [item["path"] for item in (await response.json())["items"]] == ["a/1", "a/2"]
    async with home.request("DELETE", f"/v1/payloads/{payload}/files/a/1") as response:
        assert response.status == 204
    for method in ("GET", "HEAD", "DELETE"):
        async with home.request(method, f"/v1/payloads/{payload}/files/a/1") as response:
            assert response.status == 404


@pytest.mark.parametrize(
    "path",
    ["../../x", "a/../b", "a/%2e%2e/b", "a/./b", "/etc/passwd", "a//b", "", "a%00b", "%ff", "a%0Ab", "x" * 1025, "%2e"],
)
@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
async def test_a_path_that_no_payload_may_hold_is_refused_by_name(home: House, method: str, path: str) -> None:
    """Dots, empty parts, NUL and what is not UTF-8 reach the check as the client sent them: 422 that names `path`."""
    payload = home.payloads.add().id
    head = f"{method} /v1/payloads/{payload}/files/{path} HTTP/1.1"
    status, answer = await status_of(home, head, b"Content-Length: 0\r\n\r\n")
    assert status == 422
    assert b'"field": "path"' in answer


async def test_a_path_is_decoded_once(home: House) -> None:
    """An escaped percent sign, plus, backslash, question mark and umlaut are characters of the path, nothing more."""
    payload = home.payloads.add().id
    path = "100%2525/a+b%5Cc%3Fd%C3%A4%2Fe"
    _, file = await home.put(payload, path, b"1")
    assert file["path"] == "100%25/a+b\\c?dä/e"
    assert (await home.get(f"/v1/payloads/{payload}/files/{path}"))[1] == b"1"
    status, answer = await status_of(home, f"PUT http://x/v1/payloads/{payload}/files/%41 HTTP/1.1")
    assert status == 201, answer
    assert "A" in home.payloads.files[payload]
    await home.put(payload, "q%22%C3%A4.txt", b"1")
    _, _, headers = await home.get(f"/v1/payloads/{payload}/files/q%22%C3%A4.txt")
    assert headers["Content-Disposition"] == "attachment; filename=\"q__.txt\"; filename*=UTF-8''q%22%C3%A4.txt"


async def test_too_large_is_refused_up_front_and_on_the_way(home: House) -> None:
    """Over the limit is 413, by the announced length before anything begins, else as soon as it is passed."""
    payload = home.payloads.add().id
    status, problem = await home.put(payload, "x", bytes((4 << 20) + 1))
    assert (status, problem["code"], home.payloads.abandoned) == (413, "too_large", [])

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(6):
            yield bytes(1 << 20)

    status, problem = await home.put(payload, "x", endless())
    assert (status, problem["code"], home.payloads.abandoned) == (413, "too_large", ["x"])
    assert not objects(home)
    assert not home.payloads.pending


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 3000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n200000\r\n"]
)
async def test_an_upload_that_breaks_off_leaves_nothing(home: House, framing: bytes) -> None:
    """When the client goes away in the middle, the upload is given up and no byte of it stays."""
    payload = home.payloads.add().id
    head = f"PUT /v1/payloads/{payload}/files/x HTTP/1.1"
    _, writer = await raw(home, head, framing + bytes(2_000_000))
    async with asyncio.timeout(10), home.payloads.changed:
        writer.transport.abort()
        await home.payloads.changed.wait_for(lambda: home.payloads.abandoned == ["x"])
    assert not home.payloads.pending
    assert not home.payloads.files[payload]
    assert not objects(home)


async def test_a_malformed_body_is_a_problem_and_leaves_nothing(home: House) -> None:
    """A chunk whose length is no number gets a problem document; the upload is given up."""
    payload = home.payloads.add().id
    head = f"PUT /v1/payloads/{payload}/files/x HTTP/1.1"
    status, _ = await status_of(home, head, b"Transfer-Encoding: chunked\r\n\r\nzz\r\nnope\r\n0\r\n\r\n")
    assert 400 <= status < 500
    assert not home.payloads.files[payload]
    assert not objects(home)


async def test_altered_bytes_never_arrive_whole(home: House) -> None:
    """A file whose bytes are not what was stored breaks the connection; where nothing was sent yet, it is a 500."""
    payload = home.payloads.add().id
    await home.put(payload, "small", b"hello")
    await home.put(payload, "large", BIG)
    for path in objects(home):
        path.chmod(0o600)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    status, body, _ = await home.get(f"/v1/payloads/{payload}/files/small")
    assert (status, b"hello" in body) == (500, False)
    with pytest.raises(ClientError):
        await home.get(f"/v1/payloads/{payload}/files/large")


async def test_a_file_that_is_replaced_while_it_is_asked_for(home: House) -> None:
    """Where the signed object went meanwhile, the edge asks once more and sends what is there now."""
    payload = home.payloads.add().id
    await home.put(payload, "x", b"old")
    view, key = home.payloads.files[payload]["x"]
    home.payloads.files[payload]["x"] = (view, f"{payload}/gone")
    home.payloads.on_sign = lambda: home.payloads.files[payload].update(x=(view, key))
    assert (await home.get(f"/v1/payloads/{payload}/files/x"))[:2] == (200, b"old")


async def test_others_files_are_as_if_they_were_not_there(home: House) -> None:
    """A clinician gets 404 for what another made, whatever he tries."""
    payload = home.payloads.add(created_by="bob").id
    token = await home.token(Role.CLINICIAN, "ann")
    for method in ("PUT", "GET", "HEAD", "DELETE"):
        options: dict[str, Any] = {"data": b"x"} if method == "PUT" else {}
        async with home.request(method, f"/v1/payloads/{payload}/files/x", token=token, **options) as response:
            assert response.status == 404
