"""Logs of runs: the kept one of an attempt that has ended, and the live one while it runs."""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import hdrs, web
from pydantic import Field

from gurney import ids
from gurney.errors import NotFound
from gurney.feed import Feed
from gurney.model.job import Job, JobGet
from gurney.model.payload import LogRef, SignedFile
from gurney.model.run import LogChunk
from gurney.subjects import JOB_GET, LOG_CHUNK, PAYLOAD_LOG
from gurney.transfer import open_get
from services.edge import download, sse
from services.edge.call import Call
from services.edge.log_text import HEAD, MARKER_MOST, WHOLE, Decoder, Joiner, Piece, kept_offset
from services.edge.parse import Query
from services.edge.ranges import Span
from services.edge.sse import EventStream

STREAM = "LOGS"
#: Seconds between two looks whether the attempt goes on: the message that tells its end may be lost.
LOOK_S = 5.0
#: Seconds in which what the stream holds must come.
READ_S = 2.0
#: Bytes of one event of a kept log.
PIECE = 64 * 1024

END = "end"
_ID = re.compile(r"(\d{1,9})-(\d{1,18})", re.ASCII)
_HEADERS = {hdrs.CONTENT_TYPE: "text/plain; charset=utf-8", hdrs.CACHE_CONTROL: "no-cache", **download.SAFE}


class LogsQuery(Query):
    follow: bool = False
    attempt: int | None = Field(default=None, ge=1)


async def get(call: Call) -> web.StreamResponse:
    asked = call.query(LogsQuery)
    job = await _read(call, call.id("job", "job"))
    if asked.attempt is not None and asked.attempt > job.attempt:
        raise NotFound(f"{job.id} has no attempt {asked.attempt}")
    if asked.follow:
        return await _follow(call, job, asked.attempt)
    attempt = asked.attempt or job.attempt
    kept = await _kept(call, job, attempt)
    response = web.StreamResponse(headers=_HEADERS)
    if kept is None:
        async with aclosing(_so_far(call, ids.run_id(job.id, attempt))) as chunks:
            return await download.stream(call, response, chunks)
    response.content_length = kept.file.size
    async with download.opened(kept) as chunks:
        return await download.stream(call, response, chunks)


# --- one answer ---


async def _kept(call: Call, job: Job, attempt: int) -> SignedFile | None:
    """Return the kept log of an attempt that is over, None where there is none (yet)."""
    if not _over(job, attempt):
        return None
    try:
        return await call.ask(PAYLOAD_LOG, LogRef(job=job.id, attempt=attempt))
    except NotFound:
        return None


async def _so_far(call: Call, run_id: str) -> AsyncGenerator[bytes, None]:
    """Iterate over what the stream holds of a run's log; a gap is told as one."""
    joiner = Joiner()
    async with Feed(call.edge.bus, STREAM, _subject(run_id)) as feed:
        while not feed.drained and (item := await feed.next(READ_S)):
            piece = joiner.take(LogChunk.decode(item.data))
            if piece and piece.missing:
                yield f"\n[gurney: {piece.missing} bytes of the log are not here]\n".encode()
            if piece:
                yield piece.text.encode()


# --- as it is written ---


async def _follow(call: Call, job: Job, attempt: int | None) -> web.StreamResponse:
    """Send an attempt's log as it is written; without `attempt` those of all later attempts, too."""
    last_id = call.request.headers.get(sse.LAST_EVENT_ID, "").strip()
    number = attempt or job.attempt
    if last_id == END and _over(job, number):
        return web.Response(status=204)  # tells a browser not to come again
    number, offset = _resumed(last_id, job, number)
    async with sse.answering(call) as stream:
        while not call.edge.stopping.is_set():
            job = await _send_attempt(call, stream, job, number, offset)
            if call.edge.stopping.is_set():
                break
            if job.terminal or attempt is not None:
                await stream.send(sse.event(END, {"state": job.state, "attempt": number}, END))
                break
            number, offset = number + 1, 0
    return stream.response


def _resumed(last_id: str, job: Job, number: int) -> tuple[int, int]:
    match = _ID.fullmatch(last_id)
    if match is None or not 1 <= int(match[1]) <= job.attempt:
        return number, 0
    return int(match[1]), int(match[2])


async def _send_attempt(call: Call, stream: EventStream, job: Job, attempt: int, offset: int) -> Job:
    """Send one attempt's log until the attempt is over; returns the job as it is then."""
    sender = _Sender(stream, attempt, offset)
    if not _over(job, attempt):
        run_id = ids.run_id(job.id, attempt)
        with call.edge.waiters.watching(job.id) as told:
            async with Feed(call.edge.bus, STREAM, _subject(run_id)) as feed:
                with sse.waking(feed, told, call.edge.stopping):
                    job = await _send_live(call, sender, feed, job, attempt)
    kept = await _kept(call, job, attempt)
    if kept is not None:
        await sender.rest(kept)
    elif _over(job, attempt):
        async with Feed(call.edge.bus, STREAM, _subject(ids.run_id(job.id, attempt))) as feed:
            while not feed.drained and (item := await stream.next(feed, READ_S)):
                await sender.chunk(LogChunk.decode(item.data))
    return job


async def _send_live(call: Call, sender: "_Sender", feed: Feed, job: Job, attempt: int) -> Job:
    job = await _read(call, job.id)  # again: its end may have come before anybody listened for it
    while not _over(job, attempt) and not call.edge.stopping.is_set():
        item = await sender.stream.next(feed, LOOK_S)
        if item is not None:
            await sender.chunk(LogChunk.decode(item.data))
            continue
        await sender.stream.send(sse.COMMENT)
        job = await _read(call, job.id)
    return job


class _Sender:
    """Sends one attempt's log, each byte of it once and in order."""

    def __init__(self, stream: EventStream, attempt: int, offset: int) -> None:
        self.stream = stream
        self._attempt = attempt
        self._joiner = Joiner(offset)

    async def chunk(self, chunk: LogChunk) -> None:
        """Send what a live chunk adds."""
        piece = self._joiner.take(chunk)
        if piece is None:
            return
        if piece.missing:
            gap = {"attempt": self._attempt, "offset": piece.offset - piece.missing, "bytes": piece.missing}
            await self.stream.send(sse.event("gap", gap))
        await self._send(piece, self._joiner.offset)

    async def rest(self, kept: SignedFile) -> None:
        """Send what the kept log has beyond what was sent."""
        size, start = kept.file.size, self._joiner.offset
        if size > WHOLE:
            start = kept_offset(start, await _middle(kept))
        if start >= size:
            return
        decoder = Decoder(self._joiner.offset)
        part = Span(start, size - start) if start else None
        async with download.opened(kept, part) as chunks:
            async for chunk in chunks:
                for at in range(0, len(chunk), PIECE):
                    await self._send(decoder.take(chunk[at : at + PIECE]), decoder.offset)
        await self._send(decoder.take(b"", last=True), decoder.offset)

    async def _send(self, piece: Piece, end: int) -> None:
        if piece.text:
            data = {"attempt": self._attempt, "offset": piece.offset, "text": piece.text}
            await self.stream.send(sse.event("log", data, f"{self._attempt}-{end}"))


async def _middle(kept: SignedFile) -> bytes:
    async with open_get(kept.url, HEAD, MARKER_MOST) as chunks:
        return b"".join([chunk async for chunk in chunks])


def _over(job: Job, attempt: int) -> bool:
    return job.terminal or job.attempt > attempt


def _subject(run_id: str) -> str:
    return LOG_CHUNK.of(node_id="*", run_id=run_id)


async def _read(call: Call, job_id: str) -> Job:
    return await call.ask(JOB_GET, JobGet(caller=call.caller, job=job_id))
