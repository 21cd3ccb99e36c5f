"""A streaming GET from an S3 server: a thread hashes beside; where the connection breaks it goes on from there."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp

from gurney.errors import IntegrityError, RangeNotSatisfiable, StoreUnavailable
from gurney.objects import calls
from gurney.objects.port import Digest
from gurney.transfer.digesting import Digesting

_TOTAL = re.compile(r"bytes [^/]+/(\d+)")


@asynccontextmanager
async def opened(
    session: aiohttp.ClientSession, url: str, offset: int, length: int | None, expected: Digest | None
) -> AsyncIterator["HttpGet"]:
    """Open a GET of the whole object or a range of it."""
    get = HttpGet(session, url, offset, length, expected)
    try:
        await get.open()
        yield get
    finally:
        await get.close()


class HttpGet:
    """See `gurney.transfer.port.Get`. Made for one task."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, offset: int, length: int | None, expected: Digest | None
    ) -> None:
        self._session = session
        self._url = url
        self._at = offset
        self._left = length
        self._digesting = Digesting()
        self._expected = expected
        self._stack = AsyncExitStack()
        self._response: aiohttp.ClientResponse | None = None
        self.size = 0

    async def open(self) -> None:
        """Ask for the bytes and learn the object's size."""
        try:
            await calls.persist(self._look if self._left == 0 else self._connect)
        except RangeNotSatisfiable:  # nothing lies there: that is no fault just at the end
            await calls.persist(self._look)
        if self._at > self.size:
            raise RangeNotSatisfiable(f"the object has {self.size} bytes")
        if self._expected is not None and self._expected.size != self.size:
            raise IntegrityError(f"the store has {self.size} bytes where {self._expected.size} were stored")
        rest = self.size - self._at
        self._left = rest if self._left is None else min(rest, self._left)

    async def close(self) -> None:
        """Break off what was not read."""
        self._response = None
        await self._stack.aclose()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        held = b""
        while self._left:
            chunk = await calls.persist(self._read)
            self._at += len(chunk)
            self._left -= len(chunk)
            if self._expected is not None:
                await self._digesting.take(chunk)
            if held:
                yield held
            held = chunk
        if self._expected is not None:
            await self._verify(self._expected)
        if held:
            yield held

    async def _verify(self, expected: Digest) -> None:
        found = await self._digesting.digest()
        if found != expected:
            raise IntegrityError(f"the object is not what was stored: its SHA-256 is {found.sha256}")

    async def _read(self) -> bytes:
        response = self._response or await self._connect()
        try:
            with calls.translated():
                chunk = await response.content.readany()
        except StoreUnavailable:
            await self.close()
            raise
        if not chunk:
            await self.close()
            raise StoreUnavailable("the object store broke off")
        return chunk

    async def _connect(self) -> aiohttp.ClientResponse:
        self._response = await self._enter(self._range())
        return self._response

    async def _look(self) -> None:
        """Learn the size and read nothing."""
        await self._enter({})
        await self.close()

    async def _enter(self, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        with calls.translated():
            asked = calls.request(self._session, "GET", self._url, headers=headers)
            response = await self._stack.enter_async_context(asked)
        self.size = _size(response.headers)
        return response

    def _range(self) -> dict[str, str]:
        """Return the header that asks for what is still wanted; none for a whole object."""
        if not self._at and self._left is None:
            return {}
        last = "" if self._left is None else str(self._at + self._left - 1)
        return {"Range": f"bytes={self._at}-{last}"}


def _size(headers: Mapping[str, str]) -> int:
    part = _TOTAL.fullmatch(headers.get("Content-Range", ""))
    told = part[1] if part else headers.get("Content-Length")
    if told is None:
        raise StoreUnavailable("the object store has not said how large the object is")
    return int(told)
