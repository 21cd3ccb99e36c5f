"""Bytes on their way in: begun with the owner, moved to the store, committed; or given up, and nothing stays."""

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from hashlib import sha256
from typing import TypeVar
from urllib.parse import unquote_to_bytes

from aiohttp import web

from gurney import telemetry
from gurney.errors import GurneyError, Invalid, RevisionConflict, TooLarge, Unavailable
from gurney.model.payload import (
    AbandonUploads,
    BeginUploads,
    BegunUpload,
    BegunUploads,
    Committed,
    CommitUploads,
    SignedUpload,
    SignUpload,
    Uploaded,
    WantedParts,
)
from gurney.paths import check_path, is_folder
from gurney.subjects import PAYLOAD_ABANDON, PAYLOAD_BEGIN, PAYLOAD_COMMIT, PAYLOAD_URLS
from gurney.transfer import open_put
from services.edge.call import Call
from services.edge.parse import BROKEN

_NOTHING = sha256(b"").hexdigest()
#: `/v1/<nouns>/<ref>/<part>/`: what stands before a path.
_BEFORE_PATH = 5
#: How often a change is tried while others change the same file.
TRIES = 20

R = TypeVar("R")

_log = telemetry.log("edge")


def path_of(request: web.Request) -> str:
    """Return the path at the URL's end: the client's bytes, decoded once, with whatever is wrong with them."""
    target = request.raw_path.partition("?")[0]
    if not target.startswith("/"):  # absolute form
        target = request.rel_url.raw_path
    raw = target.split("/", _BEFORE_PATH)[_BEFORE_PATH]
    try:
        return check_path(unquote_to_bytes(raw.encode("utf-8", "surrogateescape")).decode())
    except UnicodeDecodeError:
        raise Invalid.field("path", "must be UTF-8") from None


async def chunks_of(call: Call) -> AsyncIterator[bytes]:
    """Iterate over the body as it comes; raises `TooLarge`, and `Invalid` where it breaks off."""
    most, size = call.edge.settings.max_upload, 0
    try:
        async for chunk in call.request.content.iter_any():
            size += len(chunk)
            refuse_large(size, most)
            yield chunk
    except BROKEN as error:
        raise Invalid.field("body", "broke off, or is malformed") from error
    finally:
        telemetry.BYTES.labels("in").inc(size)


def refuse_large(size: int, most: int) -> None:
    if size > most:
        raise TooLarge(f"body: at most {most} bytes are allowed")


async def put(call: Call, payload: str, path: str, chunks: AsyncIterable[bytes]) -> Committed:
    """Store one file and make it visible."""
    async with begun(call, payload, [path]) as uploads:
        return await commit(
            call, uploads, [await move(call, uploads.owner, uploads.items[0], chunks, call.request.content_length)]
        )


@contextlib.asynccontextmanager
async def begun(call: Call, payload: str, paths: Sequence[str]) -> AsyncIterator[BegunUploads]:
    """Begin uploads; whatever happens in the block but its end in order gives them up."""
    question = BeginUploads(caller=call.caller, owner=payload, paths=tuple(paths))
    uploads = await call.ask(PAYLOAD_BEGIN, question)
    try:
        yield uploads
    except BaseException:
        await asyncio.shield(_abandon(call, uploads))
        raise


async def move(
    call: Call, owner: str, upload: BegunUpload, chunks: AsyncIterable[bytes], size: int | None = None
) -> Uploaded:
    """Move the bytes of one file; an empty folder has none."""
    if is_folder(upload.path):
        async for chunk in chunks:
            if chunk:
                raise Invalid.field("body", "a path that ends in / is an empty folder and has no bytes")
        return _moved(upload, 0, _NOTHING)

    async def ask(parts: WantedParts | None = None) -> SignedUpload:
        question = SignUpload(caller=call.caller, owner=owner, path=upload.path, key=upload.key, parts=parts)
        return await call.ask(PAYLOAD_URLS, question)

    async with open_put(upload.url, ask, size) as target:
        async for chunk in chunks:
            await target.write(chunk)
        digest = await target.commit()
    return _moved(upload, digest.size, digest.sha256)


def _moved(upload: BegunUpload, size: int, sha256: str) -> Uploaded:
    return Uploaded(path=upload.path, key=upload.key, size=size, sha256=sha256, after=upload.last_change)


async def commit(call: Call, uploads: BegunUploads, moved: Sequence[Uploaded]) -> Committed:
    """Make files visible; where others have changed them meanwhile, over what these made."""
    items = tuple(moved)

    async def ask(*, again: bool) -> Committed:
        nonlocal items
        if again:
            items = tuple([await _known_again(call, uploads.owner, each) for each in items])
        question = CommitUploads(caller=call.caller, owner=uploads.owner, items=items)
        return await call.ask(PAYLOAD_COMMIT, question, slow=True)

    return await over_what_is(ask)


async def _known_again(call: Call, owner: str, item: Uploaded) -> Uploaded:
    question = SignUpload(caller=call.caller, owner=owner, path=item.path, key=item.key)
    return item.but(after=(await call.ask(PAYLOAD_URLS, question)).last_change)


async def over_what_is(change: Callable[..., Awaitable[R]]) -> R:
    """Make a change that names what it knows to be the last, `again` where there was another."""
    for attempt in range(TRIES):
        with contextlib.suppress(RevisionConflict):
            return await change(again=attempt > 0)
    raise Unavailable("others change the same file all the time", retry_after_s=1)


async def _abandon(call: Call, uploads: BegunUploads) -> None:
    """Give uploads up. Where the owner does not hear of it, his sweep does the same later."""
    items = tuple((upload.path, upload.key) for upload in uploads.items)
    try:
        await call.ask(PAYLOAD_ABANDON, AbandonUploads(caller=call.caller, owner=uploads.owner, items=items))
    except GurneyError as error:
        _log.info("upload is given up later", payload=uploads.owner, reason=error.code)
