"""InferenceServer's HTTP API, of an old server or of `gurney serve inference-server`.

A task's uid is all that anybody needs to fetch its output: no error and no span tells it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

import aiohttp

from gurney.client.http import CHUNK, Http, Incoming, Json, filters, query, segment
from gurney.client.jobs import PATIENCE_S, PAUSE_S
from gurney.client.zips import Outgoing
from gurney.clock import monotonic
from gurney.errors import Conflict, Forbidden, GurneyError, Invalid, NotFound, TooLarge, Unavailable

MODELS, TASKS = "/api/models/", "/api/tasks/"
PART, MEDIA = "zip_file", "application/zip"
#: Seconds between two questions about a task that has not ended.
POLL_S = 1.0

_MODEL_NOT_FOUND = 550
_KINDS: Mapping[int, type[GurneyError]] = {
    403: Forbidden,
    404: NotFound,
    405: Forbidden,
    409: Conflict,
    413: TooLarge,
    422: Invalid,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
    _MODEL_NOT_FOUND: NotFound,
}


class State(StrEnum):
    """What a status code says of a task."""

    FINISHED = "finished"
    PENDING = "pending"
    FAILED = "failed"
    NO_OUTPUT = "no_output"
    UNKNOWN = "unknown"


#: Its own status codes.
STATES: Mapping[int, State] = {
    200: State.FINISHED,
    551: State.PENDING,
    552: State.FAILED,
    553: State.NO_OUTPUT,
    554: State.UNKNOWN,
}


@dataclass(frozen=True, slots=True)
class Told:
    """What a server says of a task; `output`: as it comes, None unless it has finished."""

    state: State
    output: Incoming | None


class InferenceServer:
    """A connection to one listener.

    >>> async with InferenceServer("http://127.0.0.1:8000") as server:
    ...     uid = await server.post_task("spleen", await outgoing([Path("series")]))
    """

    def __init__(self, url: str) -> None:
        self._http = Http(url, None, _refusal)

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def models(self) -> list[Json]:
        found = await self._http.json("GET", MODELS)
        if not isinstance(found, list):
            raise Invalid(f"{self._http.base} does not answer as InferenceServer does")
        return found

    async def post_model(
        self,
        container_tag: str,
        human_readable_id: str,
        *,
        description: str | None = None,
        use_gpu: bool = True,
        content: Outgoing | None = None,
    ) -> Json:
        """Post a model, with the zip of its static content where it has any."""
        asked = filters(
            container_tag=container_tag,
            human_readable_id=human_readable_id,
            description=description,
            use_gpu=use_gpu,
            model_available=content is not None,
        )
        if content is None:
            answer: Json = await self._http.json("POST", MODELS + query(asked))
        else:
            answer = await self._posted(MODELS + query(asked), content)
        return answer

    async def post_task(self, model: str, archive: Outgoing) -> str:
        """Post a task; returns its uid. Raises `NotFound` where there is no such model."""
        uid = await self._posted(TASKS + query(filters(model_human_readable_id=model)), archive)
        if not isinstance(uid, str):
            raise Invalid(f"{self._http.base} is no public listener: it answered with a task, not with its uid")
        return uid

    @asynccontextmanager
    async def model_zip(self, uid: str) -> AsyncIterator[Incoming]:
        """Yield the zip of a model, from a private listener. Some old servers read the query, some the path."""
        path = f"{MODELS}zips/{segment(uid)}" + query(filters(uid=uid))
        async with self._http.stream("GET", path) as response:
            yield _incoming(response)

    @asynccontextmanager
    async def output(self, uid: str) -> AsyncIterator[Told]:
        """Yield what a public listener says of a task."""
        async with self._http.stream("GET", TASKS + segment(uid), answers=STATES) as response:
            state = STATES.get(response.status)
            if state is None or (response.content_type == "application/json" and state is State.FINISHED):
                raise Invalid(f"{self._http.base} is no public listener: it does not answer with an output")
            yield Told(state, _incoming(response) if state is State.FINISHED else None)

    @asynccontextmanager
    async def settled(self, uid: str) -> AsyncIterator[Told]:
        """Yield what is said of a task once it is not pending. A server that is away is asked again for a while."""
        async with AsyncExitStack() as stack:
            until: float | None = None
            while True:
                try:
                    told = await stack.enter_async_context(self.output(uid))
                except Unavailable:
                    until = until or monotonic() + PATIENCE_S
                    if monotonic() >= until:
                        raise
                    await asyncio.sleep(PAUSE_S)
                    continue
                if told.state is not State.PENDING:
                    break
                until = None
                await stack.aclose()
                await asyncio.sleep(POLL_S)
            yield told

    async def _posted(self, path: str, archive: Outgoing) -> Any:
        form = aiohttp.MultipartWriter("form-data")
        async with aclosing(archive.chunks) as chunks:
            part = form.append_payload(_Part(chunks, archive.size))
            part.set_content_disposition("form-data", name=PART, filename="archive.zip")
            return await self._http.json("POST", path, data=form)


class _Part(aiohttp.AsyncIterablePayload):
    """A file whose size is said beforehand where it is known: some servers and proxies refuse what comes in chunks."""

    def __init__(self, chunks: AsyncIterator[bytes], size: int | None) -> None:
        super().__init__(chunks, content_type=MEDIA)
        self._announced = size

    @property
    def size(self) -> int | None:
        return self._announced


def _incoming(response: aiohttp.ClientResponse) -> Incoming:
    return Incoming(response.content.iter_chunked(CHUNK), response.content_length)


def _refusal(response: aiohttp.ClientResponse, body: bytes) -> GurneyError:
    kind = _KINDS.get(response.status, GurneyError)
    match response.status, response.method:
        case 405, "POST":
            told = "models and tasks may not be posted here: the listener is private, or ALLOW_PUBLIC_POST_MODEL empty"
        case 550, _:
            told = "there is no such model"
        case _:
            told = _detail(body) or response.reason or "no reason was given"
    return kind(f"{told} ({response.status})")


def _detail(body: bytes) -> str:
    """Return what a refusal tells: a text, perhaps nested, or a list of faults."""
    try:
        told = json.loads(body)
    except ValueError:
        return ""
    while isinstance(told, dict) and "detail" in told:
        told = told["detail"]
    if isinstance(told, list):
        return "; ".join(_fault(each) for each in told)
    return told if isinstance(told, str) else json.dumps(told)


def _fault(told: Any) -> str:
    if not isinstance(told, dict):
        return str(told)
    loc = told.get("loc") or ["request"]
    return f"{loc[-1]}: {told.get('msg')}"
