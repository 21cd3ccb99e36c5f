"""Local files to and from an S3 server. Large ones come in pieces, side by side, hashed as they were written."""

import hashlib
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from pathlib import Path

import aiohttp

from gurney.errors import IntegrityError
from gurney.objects.port import Digest
from gurney.objects.threads import Lane, hop_stoppable, landed
from gurney.tasks import spread
from gurney.transfer import copy
from gurney.transfer.http_get import HttpGet, opened
from gurney.transfer.port import Put

#: Bytes that come over one connection, and connections at once.
PIECE, _WIDTH = 64 << 20, 2
_BLOCK = 1 << 20
#: What is so small is brought into memory whole.
SMALL = 1 << 20


async def store(path: Path, put: Put) -> Digest:
    """PUT a local file."""
    async with _kept_open(copy.open_regular(path)) as (lane, fd):
        while block := await landed(lane.submit(lambda: os.read(fd, _BLOCK))):
            await put.write(block)
        return await put.commit()


async def fetch(session: aiohttp.ClientSession, url: str, path: Path, expected: Digest, mode: int) -> None:
    """Bring an object to a local file and hold it against what was expected."""
    if expected.size <= SMALL:
        await _fetch_small(session, url, path, expected, mode)
        return
    async with _kept_open(copy.replacing(path, mode)) as (lane, fd):
        if expected.size > PIECE:
            await _fetch_pieces(session, url, lane, fd, expected)
            return
        async with opened(session, url, 0, None, expected) as get:
            await _write(get, lane, fd, 0)


async def _fetch_small(session: aiohttp.ClientSession, url: str, path: Path, expected: Digest, mode: int) -> None:
    """Bring all of it into memory first: what is left takes one hop to a thread, not one for each chunk."""
    async with opened(session, url, 0, None, None) as get:
        if get.size != expected.size:
            raise IntegrityError(f"the store has {get.size} bytes where {expected.size} were stored")
        chunks = [chunk async for chunk in get]
    await hop_stoppable(lambda _: _keep(path, mode, chunks, expected))


async def _fetch_pieces(session: aiohttp.ClientSession, url: str, lane: Lane, fd: int, expected: Digest) -> None:
    sha256 = hashlib.sha256()
    there: set[int] = set()
    offsets = range(0, expected.size, PIECE)
    in_order = iter(offsets)
    due = next(in_order, None)

    async def fetch_piece(offset: int) -> None:
        nonlocal due
        async with opened(session, url, offset, PIECE, None) as get:
            if get.size != expected.size:
                raise IntegrityError(f"the store has {get.size} bytes where {expected.size} were stored")
            await _write(get, Lane(), fd, offset)
        there.add(offset)
        while due in there:
            lane.submit(lambda start=due: _hash(sha256, fd, start))  # type: ignore[misc]
            due = next(in_order, None)

    await spread(fetch_piece, offsets, _WIDTH)
    found = await landed(lane.submit(sha256.hexdigest))
    if found != expected.sha256:
        raise IntegrityError(f"the object is not what was stored: its SHA-256 is {found}")


async def _write(get: HttpGet, lane: Lane, fd: int, offset: int) -> None:
    async for chunk in get:
        await landed(lane.submit(lambda data=chunk, at=offset: _write_all(fd, data, at)))  # type: ignore[misc]
        offset += len(chunk)


@asynccontextmanager
async def _kept_open(context: AbstractContextManager[int]) -> AsyncIterator[tuple[Lane, int]]:
    """Enter a file in a thread and leave it in one, whatever happens meanwhile: the lane keeps the order."""
    lane, stack = Lane(), ExitStack()
    try:
        yield lane, await landed(lane.submit(lambda: stack.enter_context(context)))
    except BaseException as error:
        fault = error
        await landed(lane.submit(lambda: stack.__exit__(type(fault), fault, fault.__traceback__)))
        raise
    await landed(lane.submit(stack.close))


# What follows runs in threads.


def _keep(path: Path, mode: int, chunks: Sequence[bytes], expected: Digest) -> None:
    with copy.replacing(path, mode) as fd:
        sha256 = hashlib.sha256()
        for chunk in chunks:
            sha256.update(chunk)
            copy.write_all(fd, chunk)
        if (found := sha256.hexdigest()) != expected.sha256:
            raise IntegrityError(f"the object is not what was stored: its SHA-256 is {found}")


def _write_all(fd: int, data: bytes, at: int) -> None:
    written = os.pwrite(fd, data, at)
    while written < len(data):
        written += os.pwrite(fd, memoryview(data)[written:], at + written)


def _hash(sha256: "hashlib._Hash", fd: int, start: int) -> None:
    for at in range(start, start + PIECE, _BLOCK):
        sha256.update(os.pread(fd, _BLOCK, at))
