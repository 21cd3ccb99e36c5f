"""The one helper through which end-to-end tests speak HTTP: it notes every answer and checks every refusal."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import aiohttp
from yarl import URL

from gurney.client.http import ServerEvent
from services.edge.routes import ROUTES
from tests.plugins.matrix import record

Json = dict[str, Any]

PROBLEM = "application/problem+json"
_PROBLEM_FIELDS = {"type", "title", "status", "detail", "code", "errors", "trace_id"}
#: Codes of failures that a client should try again.
_AGAIN = 503


def _pattern(path: str) -> re.Pattern[str]:
    parts = re.split(r"(\{\w+\})", path)
    return re.compile("".join(_part(part) for part in parts))


def _part(part: str) -> str:
    if part == "{path}":
        return r"[\s\S]*"
    return "[^/]+" if part.startswith("{") else re.escape(part)


_TEMPLATES = [(route.method, route.path, _pattern(route.path)) for route in ROUTES]


def template_of(method: str, path: str) -> str | None:
    """Return the template of the route that answers this request, None where the table has none."""
    plain = path.partition("?")[0]
    return next((found for verb, found, pattern in _TEMPLATES if verb == method and pattern.fullmatch(plain)), None)


@dataclass(frozen=True)
class Answer:
    """What the server said."""

    method: str
    path: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def items(self) -> list[Json]:
        """The items of a list's page."""
        found: list[Json] = self.json["items"]
        return found

    @property
    def fields(self) -> set[str]:
        """The fields that a refusal names."""
        return {fault["field"] for fault in self.json["errors"]}

    def must(self, status: int, code: str | None = None) -> Self:
        """Hold the answer against a status, and against the code of a problem document."""
        assert self.status == status, f"{self.method} {self.path}: {self.status} {self.body[:2000]!r}"
        if code is not None:
            assert self.json["code"] == code, self.body
        return self

    def check(self) -> None:
        """Hold a refusal against RFC 9457 and what the API promises beside it."""
        if self.status < 400:
            return
        assert self.headers["Content-Type"].partition(";")[0] == PROBLEM, self
        if self.method != "HEAD":
            problem = self.json
            assert problem.keys() >= _PROBLEM_FIELDS, problem
            assert problem["status"] == self.status
            assert problem["code"] in problem["type"]
            assert problem["title"]
            assert problem["detail"]
            assert re.fullmatch("[0-9a-f]{32}", problem["trace_id"]), problem
            assert "Traceback" not in problem["detail"]
            assert all(fault["field"] and fault["message"] for fault in problem["errors"])
            assert self.status != 422 or problem["errors"] or problem["code"] != "invalid", problem
        if self.status == _AGAIN:
            assert int(self.headers["Retry-After"]) >= 1
        if self.status == 401:
            assert self.headers["WWW-Authenticate"].startswith("Bearer")


class Api:
    """One client: a server and a token (or none)."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url = url
        self.token = token
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        connector = aiohttp.TCPConnector(limit=128)
        self._session = aiohttp.ClientSession(
            headers=headers, connector=connector, timeout=aiohttp.ClientTimeout(total=90), auto_decompress=False
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the client is not open")
        return self._session

    async def call(self, method: str, path: str, *, case: str = "", **options: Any) -> Answer:
        """Send a request; `case` says in the matrix what led to the answer."""
        async with self.session.request(method, URL(self.url + path, encoded=True), **options) as response:
            answer = Answer(method, path, response.status, response.headers, await response.read())
        return noted(answer, case)

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.call("GET", path, **options)

    async def head(self, path: str, **options: Any) -> Answer:
        return await self.call("HEAD", path, **options)

    async def post(self, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.call("POST", path, **(_json(body) | options))

    async def put(self, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.call("PUT", path, **(_json(body) | options))

    async def patch(self, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.call("PATCH", path, **(_json(body) | options))

    async def delete(self, path: str, **options: Any) -> Answer:
        return await self.call("DELETE", path, **options)

    async def all(self, path: str) -> list[Json]:
        """Return the items of all pages of a list."""
        found: list[Json] = []
        cursor: str | None = None
        while True:
            more = "&" if "?" in path else "?"
            page = (await self.get(path + (f"{more}cursor={quote(cursor, safe='')}" if cursor else ""))).must(200)
            found += page.items
            cursor = page.json["next_cursor"]
            if cursor is None:
                return found

    async def raw(self, head: str, body: bytes = b"", *, case: str = "") -> Answer:
        """Send a request that no client library would: `head` are its lines, without the host and the token."""
        base = URL(self.url)
        reader, writer = await asyncio.open_connection(base.host, base.port)
        try:
            lines = [*head.splitlines(), f"Host: {base.host}", f"Authorization: Bearer {self.token}", "", ""]
            writer.write("\r\n".join(lines).encode("latin-1") + body)
            await writer.drain()
            async with asyncio.timeout(30):
                answered = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
                headers = dict(line.split(": ", 1) for line in answered[1:] if line)
                content = await reader.readexactly(int(headers.get("Content-Length", 0)))
        finally:
            writer.close()
        method, path, _ = head.splitlines()[0].split(" ")
        return noted(Answer(method, path, int(answered[0].split()[1]), headers, content), case)

    @asynccontextmanager
    async def events(self, path: str, last: str | None = None) -> AsyncIterator[AsyncIterator[ServerEvent]]:
        """Follow server-sent events; inside the block the server has begun to send."""
        headers = {"Last-Event-ID": last} if last else {}
        url = URL(self.url + path, encoded=True)
        async with self.session.get(url, headers=headers, timeout=aiohttp.ClientTimeout(total=None)) as response:
            body = b"" if response.status == 200 else await response.read()
            noted(Answer("GET", path, response.status, response.headers, body), "events").must(200)
            assert response.content_type == "text/event-stream"
            yield _events(response)


def noted(answer: Answer, case: str) -> Answer:
    """Note an answer in the matrix, and check it."""
    template = template_of(answer.method, answer.path)
    if template is not None:
        record(template, answer.method, answer.status, case or "as a client would")
    answer.check()
    return answer


def _json(body: Any) -> Json:
    return {"data": body} if isinstance(body, bytes) else {} if body is None else {"json": body}


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[ServerEvent]:
    fields: dict[str, str] = {}
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            yield ServerEvent(fields.get("id", ""), fields.get("event", "message"), json.loads(fields["data"]))
            fields = {}
