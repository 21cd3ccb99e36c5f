"""An upload in parts: URLs are asked for in pages as it goes on, parts are sent side by side, then named as one."""

import asyncio
from contextlib import suppress
from itertools import count

import aiohttp

from gurney.errors import Forbidden, GurneyError, StoreUnavailable, TooLarge
from gurney.model.payload import SignedUpload, WantedParts
from gurney.objects import calls
from gurney.objects.pieces import Piece
from gurney.objects.s3_uploads import completing
from gurney.transfer.port import Ask

#: Bytes of each part but the last. S3 wants 5 MiB at least; 10,000 of these are 78 GiB.
PART = 8 << 20
MOST_PARTS = 10_000
#: Parts whose URLs are asked for at once.
_PAGE = 32
#: Seconds in which the store must have made one object of the parts, and in which it is told that they are given up.
_COMPLETE_S, _ABORT_S = 600.0, 5.0
_ABORT_PAUSES_S = (0.0, 0.05, 0.2)


class Parts:
    """Sends parts in the order given. Made for one task."""

    def __init__(self, session: aiohttp.ClientSession, ask: Ask, width: int) -> None:
        """Prepare; `width` parts at most are on their way at once."""
        self._session = session
        self._ask = ask
        self._width = width
        self._numbers = count(1)
        self._etags: dict[int, str] = {}
        self._under_way: set[asyncio.Task[None]] = set()
        self._signed: SignedUpload | None = None
        self._urls: dict[int, str] = {}
        self._asking = asyncio.Lock()
        self._complete = False

    async def send(self, piece: Piece) -> None:
        """Send a part once there is room; raises what befell an earlier one."""
        number = next(self._numbers)
        if number > MOST_PARTS:
            raise TooLarge(f"the object store takes objects of at most {MOST_PARTS * PART >> 30} GiB")
        await self._land(self._width - 1)
        self._under_way.add(asyncio.create_task(self._send(number, piece)))

    async def landed(self) -> None:
        """Return when every part has landed."""
        await self._land(0)

    async def complete(self) -> None:
        """Make one object of the parts, where there is none under the key."""
        etags = [self._etags[number] for number in sorted(self._etags)]
        try:
            await self._complete_at(self._known().complete, etags)
        except Forbidden:
            self._signed = await self._ask(WantedParts(upload=self._known().upload, count=1))
            await self._complete_at(self._signed.complete, etags)
        self._complete = True

    async def close(self) -> None:
        """Break off what is under way; parts that have not become an object are given up."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        self._under_way.clear()
        if self._signed is not None and self._signed.abort and not self._complete:
            with suppress(GurneyError, TimeoutError):  # the owner gives it up, too, or his sweep does
                async with asyncio.timeout(_ABORT_S):
                    await self._abort(self._signed.abort)

    async def _abort(self, url: str) -> None:
        """Give the parts up, more than once: one that broke off may come to its end in the store all the same."""
        for pause in _ABORT_PAUSES_S:
            await asyncio.sleep(pause)
            try:
                await calls.persist(lambda: calls.call(self._session, "DELETE", url))
            except calls.UploadGone:
                return

    async def _land(self, most: int) -> None:
        while len(self._under_way) > most:
            done, self._under_way = await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
            for fault in [task.exception() for task in done]:  # each is looked at, or its task complains
                if fault is not None:
                    raise fault

    async def _send(self, number: int, piece: Piece) -> None:
        self._etags[number] = await calls.persist(lambda: self._put(number, piece))

    async def _put(self, number: int, piece: Piece) -> str:
        url = await self._url(number)
        try:
            answer = await calls.call(self._session, "PUT", url, body=piece)
        except Forbidden:
            answer = await calls.call(self._session, "PUT", await self._url(number, lapsed=url), body=piece)
        except StoreUnavailable:
            await piece.whole()  # the store may have lost patience with who sends it: the next try takes it from memory
            raise
        etag = answer.headers.get("ETag")
        if not etag:
            raise StoreUnavailable("the object store has not said what it stored")
        return etag

    async def _url(self, number: int, lapsed: str | None = None) -> str:
        async with self._asking:
            if self._urls.get(number, lapsed) == lapsed:
                upload = self._signed.upload if self._signed else None
                self._signed = await self._ask(WantedParts(upload=upload, first=number, count=_PAGE))
                self._urls = dict(enumerate(self._signed.parts, number)) | {
                    known: url for known, url in self._urls.items() if known < number
                }
            return self._urls[number]

    async def _complete_at(self, url: str | None, etags: list[str]) -> None:
        if url is None:
            raise StoreUnavailable("the owner of the upload has not said where it is completed")
        answer = await calls.call(
            self._session, "POST", url, headers=calls.ONCE, body=Piece.of([completing(etags)]), within=_COMPLETE_S
        )
        if b"<Error" in answer.body:  # S3 may say so after it has begun to answer with 200
            raise calls.refusal(500, answer.body)

    def _known(self) -> SignedUpload:
        if self._signed is None:
            raise StoreUnavailable("no part was sent")
        return self._signed
