"""What goes wrong beneath the routes: requests that are no HTTP, and bodies that are not read."""

import asyncio
import gzip
import itertools
import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client import REGISTRY

from gurney.testing.nats import NatsServer
from services.edge.server import SHUTDOWN_S
from tests.service.edge_house import SECRET, House, house

pytestmark = pytest.mark.timeout(60)
OWN = b"Host: x\r\nAuthorization: Bearer " + SECRET.encode() + b"\r\n"
BOMB = gzip.compress(bytes(20 << 20))
CODINGS = (b"gzip", b"deflate", b"br", b"zstd", b"GZIP", b"gzip, identity", b"nonsense")
JSON, ZIP = b"application/json", b"application/zip"


@pytest.fixture
async def home(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[House]:
    async with house(nats_server.url, tmp_path, max_upload=4 << 20) as built:
        yield built


class Answer:
    """One answer, as it came over the wire."""

    def __init__(self, head: bytes, body: bytes) -> None:
        lines = head.decode().splitlines()
        self.version, status = lines[0].split()[:2]
        self.status = int(status)
        self.headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        self.problem: dict[str, Any] = json.loads(body)

    @property
    def closes(self) -> bool:
        return self.version == "HTTP/1.0" or self.headers.get("Connection") == "close"


class Wire:
    """A connection on which a test writes what no client library would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, home: House) -> "Wire":
        url = urlsplit(home.edge.url)
        return cls(*await asyncio.open_connection(url.hostname, url.port))

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> Answer:
        async with asyncio.timeout(10):
            head = await self._reader.readuntil(b"\r\n\r\n")
            match = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            return Answer(head, await self._reader.readexactly(int(match[1]) if match else 0))

    async def is_closed(self) -> bool:
        """Tell whether the server ends the connection without another byte."""
        async with asyncio.timeout(10):
            return await self._reader.read() == b""

    def close(self) -> None:
        self._writer.close()


async def told(home: House, data: bytes) -> Answer:
    """Return the answer to these bytes."""
    wire = await Wire.to(home)
    await wire.write(data)
    answer = await wire.answer()
    wire.close()
    return answer


def request(line: bytes, *fields: bytes, body: bytes = b"") -> bytes:
    """Return a request with a token and a length."""
    length = b"Content-Length: %d\r\n" % len(body)
    return line + b" HTTP/1.1\r\n" + OWN + length + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


def head(*lines: bytes) -> bytes:
    return b"\r\n".join((*lines, b"", b""))


#: What the parser refuses: bytes, status, code.
REFUSED: dict[str, tuple[bytes, int, str]] = {
    "long request line": (request(b"GET /v1/maps?cursor=" + b"x" * 16_384), 414, "uri_too_long"),
    "long value": (request(b"GET /livez", b"X: " + b"x" * 8193), 431, "header_too_large"),
    "long name": (request(b"GET /livez", b"x" * 8193 + b": 1"), 431, "header_too_large"),
    "unknown method": (request(b"NONSENSE /livez"), 501, "not_implemented"),
    "small letters": (request(b"get /livez"), 501, "not_implemented"),
    "TLS": (b"\x16\x03\x01\x02\r\n\r\n", 501, "not_implemented"),
    "UTF-8 in the path": (request("GET /v1/payloads/ä".encode()), 400, "bad_request"),
    "any byte in the path": (request(b"GET /v1/payloads/\xff"), 400, "bad_request"),
    "space in the path": (request(b"GET /v1/payloads/a b"), 400, "bad_request"),
    "relative path": (request(b"GET livez"), 400, "bad_request"),
    "malformed host": (request(b"GET http://[x/livez"), 400, "bad_request"),
    "version": (head(b"GET /livez HTTP/3.0", b"Host: x"), 400, "bad_request"),
    "no host": (head(b"GET /livez HTTP/1.1"), 400, "bad_request"),
    "two hosts": (request(b"GET /livez", b"Host: y"), 400, "bad_request"),
    "space in a name": (request(b"GET /livez", b"X y: 1"), 400, "bad_request"),
    "control character": (request(b"GET /livez", b"X: \x01"), 400, "bad_request"),
    "many headers": (request(b"GET /livez", *[b"X: 1"] * 200), 400, "bad_request"),
    "length": (head(b"GET /livez HTTP/1.1", b"Host: x", b"Content-Length: x"), 400, "bad_request"),
    "two lengths": (request(b"POST /v1/payloads", b"Transfer-Encoding: chunked"), 400, "bad_request"),
    "framing": (head(b"POST / HTTP/1.1", b"Host: x", b"Transfer-Encoding: nonsense"), 400, "bad_request"),
    "chunk": (head(b"POST / HTTP/1.1", b"Host: x", b"Transfer-Encoding: chunked") + b"zz\r\n", 400, "bad_request"),
}


@pytest.mark.parametrize(("sent", "status", "code"), REFUSED.values(), ids=REFUSED)
async def test_what_is_no_request_gets_a_problem(
    home: House, caplog: pytest.LogCaptureFixture, sent: bytes, status: int, code: str
) -> None:
    """What the parser refuses is a problem document that shows nothing of the inside, and no error in the log."""
    answer = await told(home, sent)
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert answer.closes
    problem = answer.problem
    assert set(problem) == {"type", "title", "status", "detail", "code", "errors", "trace_id"}
    assert (problem["status"], problem["code"], problem["errors"]) == (status, code, [])
    assert re.fullmatch("[0-9a-f]{32}", problem["trace_id"])
    assert problem["title"]
    assert re.fullmatch(r"[\w/.',:' `-]{10,200}", problem["detail"], re.ASCII), problem
    assert "xxx" not in problem["detail"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_long_but_lawful_request_is_taken(home: House) -> None:
    """A path of 1,024 bytes of which each is escaped is within the limit of a request line."""
    answer = await told(home, request(b"GET /v1/payloads/" + b"%C3%A4" * 512 + b"/files/" + b"%C3%A4" * 512))
    assert answer.status == 422  # a part of the path is over 255 bytes


@pytest.mark.parametrize(
    ("line", "kind"), [(b"POST /v1/payloads", JSON), (b"POST /v1/payloads", ZIP), (b"PUT {file}", b"text/plain")]
)
async def test_an_encoded_body_is_refused(home: House, line: bytes, kind: bytes) -> None:
    """A body in any coding is 415 that says so, a bomb as well as a small one; nothing is made."""
    payload = home.payloads.add().id
    line = line.replace(b"{file}", f"/v1/payloads/{payload}/files/x".encode())
    for coding, body in itertools.product(CODINGS, (BOMB, gzip.compress(b"{}"), b"{}")):
        fields = (b"Content-Type: " + kind, b"Content-Encoding: " + coding)
        answer = await told(home, request(line, *fields, body=body))
        assert (answer.status, answer.problem["code"]) == (415, "unsupported_type")
        assert answer.problem["detail"].startswith("Content-Encoding: ")
        assert answer.headers["Accept-Encoding"] == "identity"
    assert list(home.payloads.payloads) == [payload]
    assert home.payloads.files[payload] == {}
    assert home.payloads.abandoned == []


@pytest.mark.parametrize("field", [b"Content-Encoding: identity", b"Content-Encoding:"])
async def test_a_body_that_says_it_is_plain_is_taken(home: House, field: bytes) -> None:
    """`identity` is no coding."""
    answer = await told(home, request(b"POST /v1/payloads", field, b"Content-Type: application/json", body=b"{}"))
    assert answer.status == 201


@pytest.mark.parametrize(
    ("line", "status"),
    [(b"POST /v1/payloads", 415), (b"PUT {file}/../x", 422), (b"PUT {file}", 413), (b"POST /v1/nothing", 404)],
)
async def test_a_refusal_before_the_body_ends_the_connection(home: House, line: bytes, status: int) -> None:
    """A refusal says `Connection: close` while bytes of the body are to come, and nothing is taken for a request."""
    file = f"/v1/payloads/{home.payloads.add().id}/files/x"
    wire = await Wire.to(home)
    data = request(line.replace(b"{file}", file.encode()), b"Content-Type: text/plain", body=bytes(5 << 20))
    await wire.write(data[:1000])
    answer = await wire.answer()
    assert (answer.status, answer.closes) == (status, True)
    await wire.write(data[1000:])
    assert await wire.is_closed()
    wire.close()


async def test_a_refused_client_that_sends_nothing_more_delays_no_stop(home: House) -> None:
    """A server that stops does not wait for the rest of a body that it has refused."""
    wire = await Wire.to(home)
    await wire.write(head(b"POST /v1/payloads HTTP/1.1", b"Host: x", b"Content-Length: 1000000") + b"{")
    assert (await wire.answer()).status == 401
    assert home.edge.http is not None
    async with asyncio.timeout(SHUTDOWN_S / 2):
        await home.edge.http.__aexit__()
    wire.close()


async def test_a_refusal_of_a_whole_body_keeps_the_connection(home: House) -> None:
    """Where the body is there, a refusal read or unread leaves the connection to the next request."""
    wire = await Wire.to(home)
    for line, kind, status in (
        (b"POST /v1/payloads", b"text/plain", 415),
        (b"POST /v1/payloads", JSON, 422),
        (b"POST /v1/nothing", JSON, 404),
    ):
        await wire.write(request(line, b"Content-Type: " + kind, body=b'{"nonsense":1}'))
        answer = await wire.answer()
        assert (answer.status, answer.closes) == (status, False)
    wire.close()


@pytest.mark.parametrize("line", [b"POST /v1/payloads", b"PUT {file}"])
async def test_a_body_that_turns_out_malformed_is_answered(
    home: House, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    """A chunk that is none gets 422 once it comes, not silence; then the connection ends, and no file is begun."""
    payload = home.payloads.add().id
    wire = await Wire.to(home)
    line = line.replace(b"{file}", f"/v1/payloads/{payload}/files/x".encode())
    fields = (b"Content-Type: application/json", b"Transfer-Encoding: chunked")
    await wire.write(head(line + b" HTTP/1.1", OWN.rstrip(), *fields) + b"2\r\n{ \r\n")
    await asyncio.sleep(0.05)  # so that it comes by itself; were it earlier, the parser would refuse the whole
    await wire.write(b"no length\r\n")
    answer = await wire.answer()
    assert (answer.status, answer.closes) == (422, True)
    assert answer.problem["errors"][0]["field"] == "body"
    assert await wire.is_closed()
    wire.close()
    assert not home.payloads.pending
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def answered(status: int) -> float:
    """Return how many requests to create a payload had this status."""
    labels = {"method": "POST", "route": "/v1/payloads", "status": str(status)}
    return REGISTRY.get_sample_value("gurney_http_requests_total", labels) or 0.0


async def test_a_client_that_leaves_in_a_json_body_is_no_defect(home: House) -> None:
    """A connection that ends within a body is the client's matter, and is counted as such."""
    refused, failed = answered(422), answered(500)
    wire = await Wire.to(home)
    await wire.write(request(b"POST /v1/payloads", b"Content-Type: application/json", body=b"{}" * 50)[:-10])
    wire.close()
    async with asyncio.timeout(10):
        while answered(422) + answered(500) == refused + failed:
            await asyncio.sleep(0.01)
    assert (answered(422), answered(500)) == (refused + 1, failed)
