"""One request to an S3 server over a signed URL, and what its refusals mean: the one place that knows either."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import StreamWriter
from yarl import URL

from gurney import clock
from gurney.errors import (
    Conflict,
    Forbidden,
    GurneyError,
    NotFound,
    RangeNotSatisfiable,
    StoreUnavailable,
    TooLarge,
    Unavailable,
)
from gurney.objects.pieces import Piece

T = TypeVar("T")

#: What a PUT must send whose URL binds it: the object is made only where there is none.
ONCE = {"If-None-Match": "*"}
#: Seconds over which a store that fails is asked again, and the longest pause between two tries.
PATIENCE_S, PAUSE_S = 10.0, 1.0
#: Seconds in which a connection must stand, and in which something must come from a store that owes an answer.
CONNECT_S, SILENCE_S = 5.0, 30.0
#: Seconds that one request may take whose body and answer are small or lie in memory.
REQUEST_S = 120.0
_FIRST_PAUSE_S = 0.05
_TOLD = 4096
_REDIRECTION, _FAULT = 300, 500
#: Refusals that a later try may not meet: too slow, in conflict with another at this moment, too many.
_PASSING = frozenset({408, 409, 429})


class Lasting(StoreUnavailable):
    """What will not be otherwise in a moment: asking again at once is in vain."""

    lasting = True


class UploadGone(Lasting):
    """The upload in parts is not there: it was given up, or it is complete."""


_REFUSALS: Mapping[str, tuple[type[GurneyError], str]] = {
    "PreconditionFailed": (Conflict, "an object lies under this key, and objects are written once"),
    "NoSuchKey": (NotFound, "no object lies under this key"),
    "NoSuchUpload": (UploadGone, "the upload stood still for so long that it was swept away"),
    "InvalidPart": (UploadGone, "parts of the upload are gone: it stood still for so long that it was swept away"),
    "NoSuchBucket": (StoreUnavailable, "the bucket of the object store is gone"),
    "InvalidRange": (RangeNotSatisfiable, "the object is smaller than the range wants it"),
    "EntityTooLarge": (TooLarge, "the object store takes no object of this size"),
    "XMinioStorageFull": (StoreUnavailable, "the object store is full"),
    "QuotaExceeded": (StoreUnavailable, "the object store is full"),
    "AccessDenied": (Forbidden, "the URL has expired, or is not signed for this use"),
    "SignatureDoesNotMatch": (Forbidden, "the URL is not signed by this store for this use"),
    "InvalidAccessKeyId": (Forbidden, "the object store does not know who signed the URL"),
    "RequestTimeTooSkewed": (Forbidden, "the clocks of the payload service and the object store differ"),
}
#: For answers that have no body, such as those to HEAD.
_BY_STATUS = {
    403: "AccessDenied",
    404: "NoSuchKey",
    412: "PreconditionFailed",
    413: "EntityTooLarge",
    416: "InvalidRange",
    507: "XMinioStorageFull",
}
_CODE = re.compile(rb"<Code>\s*(\w+)\s*</Code>")


class Body(aiohttp.Payload):
    """A piece on its way. It is sent once: whether it is sent again is for us to decide."""

    def __init__(self, piece: Piece) -> None:
        super().__init__(piece)
        self._size = piece.size
        self._transport: asyncio.Transport | None = None

    def cut(self) -> None:
        """Break the connection; closed in order it would wait until the store has read all, which it may never do."""
        if self._transport is not None:
            self._transport.abort()

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError(f"bytes of an object are no text, {encoding}/{errors} or else")

    async def write(self, writer: AbstractStreamWriter) -> None:
        self._consumed = True
        self._transport = writer.transport if isinstance(writer, StreamWriter) else None
        async for chunk in self._value:
            await writer.write(chunk)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        del content_length  # it is what we said
        await self.write(writer)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a small answer says."""

    headers: Mapping[str, str]
    body: bytes


async def call(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: Piece | None = None,
    within: float | None = None,
) -> Answer:
    """Send a request whose answer is small; raises our errors where it is refused or takes too long."""
    within = within or REQUEST_S
    with translated():
        async with (
            asyncio.timeout(within),
            request(session, method, url, headers=headers, body=body, silence=within) as response,
        ):
            return Answer(response.headers, await response.read())


@asynccontextmanager
async def request(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: Piece | None = None,
    silence: float = SILENCE_S,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Send a request and hand out its answer where that is a success. To be `translated`, as is reading its body."""
    data = None if body is None else Body(body)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=silence)
    options: Any = {"headers": headers, "data": data, "allow_redirects": False, "timeout": timeout}
    try:
        response = await session.request(method, URL(url, encoded=True), **options)
    except BaseException:
        if data is not None:
            data.cut()
        raise
    async with response:
        if response.status >= _REDIRECTION:
            refused = refusal(response.status, await response.content.read(_TOLD))
            if data is not None:
                data.cut()
            raise refused
        yield response


@contextmanager
def translated() -> Iterator[None]:
    """Turn what befalls a connection into `StoreUnavailable`, without the URL, which is a secret."""
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        where = f"{error.host}:{error.port}"
        raise StoreUnavailable(
            f"the object store at {where} is not there: {error.strerror or error.os_error}"
        ) from error
    except TimeoutError as error:
        raise StoreUnavailable("the object store does not answer") from error
    except (aiohttp.ClientError, ConnectionError) as error:
        raise StoreUnavailable(f"the connection to the object store broke: {type(error).__name__}") from error


def refusal(status: int, body: bytes) -> GurneyError:
    """Return the error that an answer stands for."""
    found = _CODE.search(body)
    code = found[1].decode() if found else _BY_STATUS.get(status, str(status))
    passing = status >= _FAULT or status in _PASSING
    other = StoreUnavailable if passing else Lasting
    kind, text = _REFUSALS.get(code, (other, f"the object store answers {status} {code}"))
    return kind(text)


async def persist(attempt: Callable[[], Awaitable[T]]) -> T:
    """Make the attempt, and make it again while the store, or who signs its URLs, is away, until patience is over."""
    deadline, pause = 0.0, _FIRST_PAUSE_S
    while True:
        try:
            return await attempt()
        except Lasting:
            raise
        except Unavailable:
            now = clock.monotonic()
            deadline = deadline or now + PATIENCE_S  # an attempt may have taken long before it failed
            if now + pause > deadline:
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, PAUSE_S)
