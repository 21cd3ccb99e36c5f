"""Server-sent events (WHATWG HTML, 9.2): how they are written, and the stream of them to one client."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from aiohttp import hdrs, web

from gurney import telemetry
from gurney.clock import monotonic
from gurney.errors import Unauthorized, Unavailable
from gurney.feed import Feed, Item
from services.edge import respond
from services.edge.call import Call

MEDIA = "text/event-stream"
LAST_EVENT_ID = "Last-Event-ID"
#: Seconds of silence after which a comment says that the connection stands.
KEEP_ALIVE_S = 15.0
#: Bytes that are gathered for one write.
GATHERED = 64 * 1024

COMMENT = b":\n\n"
#: Clients wait so long before they come again.
_HELLO = b"retry: 2000\n\n"
_HEADERS = {hdrs.CONTENT_TYPE: MEDIA, hdrs.CACHE_CONTROL: "no-store", "X-Accel-Buffering": "no"}

_log = telemetry.log("edge")


class Gone(Exception):
    """The client went away, or does not take what is written to him."""


def event(name: str, data: bytes | dict[str, Any], id: str | None = None) -> bytes:  # noqa: A002
    """Return one event; `data` is JSON, which has no line breaks of its own."""
    raw = data if isinstance(data, bytes) else json.dumps(data, ensure_ascii=False).encode()
    lines = b"\n".join(b"data: " + line for line in raw.splitlines() or [b""])
    head = f"id: {id}\nevent: {name}\n" if id is not None else f"event: {name}\n"
    return head.encode() + lines + b"\n\n"


class EventStream:
    """The events of one answer. Memory is bounded: who reads slowly is waited for, who is stuck is let go."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._looked = monotonic()
        self.response = web.StreamResponse(headers=_HEADERS)

    async def open(self) -> None:
        """Send the head of the answer, so that the client knows that from now on he misses nothing."""
        await self.response.prepare(self._call.request)
        await self.send(_HELLO)

    async def send(self, data: bytes) -> None:
        """Write; raises `Gone`."""
        try:
            async with asyncio.timeout(respond.STUCK_S):
                await self.response.write(data)
        except (TimeoutError, ConnectionError) as error:
            raise Gone from error

    async def next(self, feed: Feed, within: float) -> Item | None:
        """Return what comes next, None after silence; raises `Gone` where nobody may hear it any more."""
        item = await feed.next(within)
        if item is None or monotonic() - self._looked >= KEEP_ALIVE_S:
            await self._look()
        return item

    async def _look(self) -> None:
        """See that the token is still good; that the client is there is seen when something is written to him."""
        try:
            await self._call.edge.authenticator.caller(self._call.request.headers.get(hdrs.AUTHORIZATION))
        except Unauthorized as error:
            raise Gone from error
        self._looked = monotonic()


@contextlib.asynccontextmanager
async def answering(call: Call) -> AsyncIterator[EventStream]:
    """Send the events of the block. A stream that NATS fails ends in order: the client comes again where it ended."""
    stream = EventStream(call)
    try:
        await stream.open()
        try:
            yield stream
        except Unavailable as error:
            _log.info("event stream ends", reason=error.code)
        await stream.response.write_eof()
    except (Gone, ConnectionError):
        if call.request.transport is not None:
            call.request.transport.abort()


@contextlib.contextmanager
def waking(feed: Feed, *events: asyncio.Event) -> Iterator[None]:
    """Wake who waits for the feed when one of these happens."""
    tasks = [asyncio.create_task(_wake(feed, event)) for event in events]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


async def _wake(feed: Feed, event: asyncio.Event) -> None:
    await event.wait()
    feed.wake()
