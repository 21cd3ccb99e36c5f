"""A streaming PUT to an S3 server: what is small goes whole, what is larger in parts, each kept in memory meanwhile.

So a part is sent again where the store was away for a moment, and the store waits for a slow client at most until it
loses patience: then the part is sent again once it is there. Where the size is known a part is sent while it fills.
At most three parts are in memory.
"""

from collections.abc import Awaitable, Callable

import aiohttp

from gurney.errors import Conflict, Forbidden, IntegrityError, Invalid, NotFound, StoreUnavailable
from gurney.objects import calls
from gurney.objects.pieces import Chunk, Piece
from gurney.objects.port import Digest
from gurney.transfer.digesting import Digesting
from gurney.transfer.http_get import opened
from gurney.transfer.http_parts import PART, Parts
from gurney.transfer.port import Ask


class HttpPut:
    """See `gurney.transfer.port.Put`. Made for one task."""

    def __init__(self, session: aiohttp.ClientSession, url: str, ask: Ask | None, size: int | None) -> None:
        self._session = session
        self._url = url
        self._ask = ask
        self._left = size
        self._digesting = Digesting()
        self._filling = Piece(0)
        self._parts: Parts | None = None
        #: Parts go while they fill.
        self._at_once = size is not None and size > PART
        self._doubtful = False

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        data: Chunk = chunk if isinstance(chunk, bytes) else bytes(chunk)  # others may change under us
        while data:
            if not self._filling.room:
                await self._next_piece()
            room = self._filling.room
            first, data = (data, b"") if len(data) <= room else (memoryview(data)[:room], memoryview(data)[room:])
            self._filling.add(first)
            await self._digesting.take(first)

    async def commit(self) -> Digest:
        self._digesting.hurry()
        if self._at_once and (self._left or self._filling.room):
            raise Invalid.field("body", "ended before it had the size that was said")
        self._filling.finish()
        if self._parts is None:
            await calls.persist(lambda: self._once(self._put))
        else:
            if not self._at_once:
                await self._send()
            await self._parts.landed()
            await calls.persist(lambda: self._once(self._complete))
        return await self._digesting.digest()

    async def close(self) -> None:
        """Give up the parts of what was not committed."""
        if self._parts is not None:
            await self._parts.close()

    async def _next_piece(self) -> None:
        if self._filling.size and not self._at_once:
            await self._send()
        if not self._at_once:
            self._filling = Piece(PART)
            return
        if not self._left:
            raise Invalid.field("body", "has more than the size that was said")
        self._filling = Piece(min(PART, self._left))
        self._left -= self._filling.size
        await self._send()

    async def _send(self) -> None:
        if self._parts is None:
            if self._ask is None:
                raise ValueError(
                    f"who PUTs more than {PART >> 20} MiB to an S3 server must be able to ask for more URLs"
                )
            self._parts = Parts(self._session, self._ask, 3 if self._at_once else 2)
        await self._parts.send(self._filling)

    async def _once(self, make: Callable[[], Awaitable[None]]) -> None:
        """Make the object. Where an earlier answer was lost, that one may have made it: then its bytes are ours."""
        try:
            await make()
        except (Conflict, calls.UploadGone):
            if not (self._doubtful and await self._is_ours()):
                raise
        except StoreUnavailable:
            self._doubtful = True
            raise

    async def _put(self) -> None:
        try:
            await self._put_to(self._url)
        except Forbidden:
            if self._ask is None:
                raise
            self._url = (await self._ask()).put
            await self._put_to(self._url)

    async def _put_to(self, url: str) -> None:
        await calls.call(self._session, "PUT", url, headers=calls.ONCE, body=self._filling)

    async def _complete(self) -> None:
        if self._parts is not None:
            await self._parts.complete()

    async def _is_ours(self) -> bool:
        if self._ask is None:
            return False
        url, mine = (await self._ask()).get, await self._digesting.digest()
        try:
            async with opened(self._session, url, 0, None, mine) as get:
                async for _ in get:
                    pass
        except (IntegrityError, NotFound):
            return False
        return True
