"""HTTP for the clients: bearer token, problem documents turned into the errors of `gurney.errors`, pages, events."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import aiohttp
from yarl import URL

from gurney import recording, tracing
from gurney.errors import ErrorBody, GurneyError, Invalid, RunFailed, Unavailable, from_body

Json = dict[str, Any]
#: Told how many more bytes have moved.
Moved = Callable[[int], None]

CHUNK = 1 << 20
#: What a proxy says where nobody behind it answers.
PROXY_ALONE = frozenset({502, 503, 504})
#: What of a path a span's name shows.
_NOUNS = frozenset(
    {"v1", "maps", "payloads", "files", "archive", "jobs", "cancel", "finalize", "logs", "events", "results", "run"}
    | {"api", "models", "tasks", "zips"}  # of InferenceServer
)
_JOB_AT = 3


@dataclass(frozen=True, slots=True)
class Incoming:
    """Bytes as they come; `size` where the server has said how many."""

    chunks: AsyncIterator[bytes]
    size: int | None


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """An event of `GET /v1/events` or of a job: `type` such as `job.succeeded`, `id` to resume after."""

    id: str
    type: str
    data: Any


def segment(text: str) -> str:
    """Return a path segment."""
    return quote(text, safe="")


def file_path(path: str) -> str:
    """Return a file's path for a URL: slashes stay."""
    return "/".join(map(segment, path.split("/")))


class Http:
    """One server and one token; `error_of`: how a server that is not Gurney refuses."""

    def __init__(
        self,
        url: str,
        token: str | None,
        error_of: Callable[[aiohttp.ClientResponse, bytes], GurneyError] | None = None,
    ) -> None:
        self.base = url.rstrip("/")
        self._error_of = error_of or _error
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        await recording.record_as_configured("client")
        timeout = aiohttp.ClientTimeout(total=None, connect=10, sock_read=None)
        connector = aiohttp.TCPConnector(limit=256)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout, connector=connector)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session:
            await self._session.close()

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        answers: Collection[int] = (),
        **options: Any,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and yield its response; raises the error that the server told, unless `answers` has it."""
        if self._session is None:
            raise RuntimeError("the client is not open: use it as a context")
        url = URL(self.base + path, encoded=True)
        span = _span(method, url).begin()
        fault: BaseException | None = None
        try:
            if recording.is_recording():  # else the server decides whether the trace is recorded
                headers = {**(headers or {}), "traceparent": span.traceparent}
            async with self._session.request(method, url, headers=headers, **options) as response:
                span.note("http.response.status_code", response.status)
                span.about(response.headers.get("Location", "").rpartition("/")[2])
                if response.status >= 400 and response.status not in answers:  # noqa: PLR2004  # HTTP's border
                    raise self._error_of(response, await response.read())
                yield response
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            raise Invalid(f"{self.base} is no URL of a server, such as http://127.0.0.1:8350") from None
        except aiohttp.ClientConnectionError as error:
            fault = error
            if isinstance(error.__cause__, OSError) and error.__cause__.filename:
                raise error.__cause__ from None  # a local file that could not be read, not the server
            if isinstance(error.__cause__, GurneyError):
                raise error.__cause__ from None  # so is one that changed while it was sent
            raise Unavailable(f"cannot reach {self.base}: {error}") from error
        except aiohttp.ClientPayloadError as error:
            fault = error
            raise Unavailable(f"the answer of {self.base} broke off") from error
        except GurneyError as error:
            fault = error
            raise
        finally:
            span.end(fault)

    async def json(self, method: str, path: str, **options: Any) -> Any:
        """Send a request and return its JSON, None where there is no body."""
        async with self.stream(method, path, **options) as response:
            body = await response.read()
            try:
                return json.loads(body) if body else None
            except ValueError as error:
                raise GurneyError(f"{method}: the answer of {self.base} is no JSON: something else answers") from error

    async def pages(self, path: str, params: list[tuple[str, str]]) -> AsyncIterator[Json]:
        """Yield the items of a list, page after page."""
        cursor: str | None = None
        while True:
            more = [("cursor", cursor)] if cursor else []
            page = await self.json("GET", path + query(params + more))
            for item in page["items"]:
                yield item
            cursor = page["next_cursor"]
            if cursor is None:
                return

    async def events(self, path: str, last_event_id: str | None = None) -> AsyncIterator[ServerEvent]:
        """Yield server-sent events (WHATWG HTML, 9.2) until the server ends the stream."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_event_id} if last_event_id else {})
        async with self.stream("GET", path, headers=headers) as response:
            fields: dict[str, str] = {}
            async for raw in response.content:
                line = raw.decode().rstrip("\r\n")
                if line:
                    name, _, value = line.partition(":")
                    fields[name] = f"{fields['data']}\n{value[1:]}" if name == "data" in fields else value.lstrip(" ")
                elif "data" in fields:
                    yield ServerEvent(fields.get("id", ""), fields.get("event", "message"), _loaded(fields["data"]))
                    fields = {}


def _span(method: str, url: URL) -> tracing.Span:
    """Return the span of a request. Of its path only nouns are told: what else stands there may be a patient's."""
    nouns = [part for part in url.raw_parts[1:] if part in _NOUNS]
    job = url.raw_parts[3] if url.raw_parts[1:3] == ("v1", "jobs") and len(url.raw_parts) > _JOB_AT else None
    attributes = {"http.request.method": method, "server.address": url.host or ""}
    return tracing.span(
        f"{method} /{'/'.join(nouns)}", tracing.CLIENT, service="client", about=job, attributes=attributes
    )


def query(params: list[tuple[str, str]]) -> str:
    """Return a query string, empty where there are no parameters."""
    return "?" + "&".join(f"{quote(key)}={segment(value)}" for key, value in params) if params else ""


def filters(**values: Any) -> list[tuple[str, str]]:
    """Return query parameters for what is given; `label` is a mapping."""
    params: list[tuple[str, str]] = []
    for name, value in values.items():
        if value is None:
            continue
        if name == "label":
            params += [("label", f"{key}={each}") for key, each in value.items()]
        else:
            params.append((name, str(value)))
    return params


async def chunks_of(path: str, moved: Moved | None) -> AsyncGenerator[bytes, None]:
    """Yield a local file's bytes, read off the loop."""
    file = await asyncio.to_thread(open, path, "rb")
    try:
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield chunk
            if moved:
                moved(len(chunk))
    finally:
        await asyncio.to_thread(file.close)


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _error(response: aiohttp.ClientResponse, body: bytes) -> GurneyError:
    try:
        problem = json.loads(body)
        told = ErrorBody(
            code=problem["code"],
            message=problem.get("detail") or problem.get("title") or "",
            errors=problem.get("errors") or (),
            retry_after_s=response.headers.get("Retry-After"),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        kind = Unavailable if response.status in PROXY_ALONE else GurneyError
        return kind(f"{response.method} {response.url.path}: {response.status} {response.reason}")
    error = from_body(told)
    if isinstance(error, RunFailed):
        error.job, error.reason, error.exit_code = (problem.get(name) for name in ("job", "reason", "exit_code"))
    return error
