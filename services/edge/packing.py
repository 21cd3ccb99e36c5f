"""A whole payload as one archive, streamed."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from aiohttp import hdrs, web

from gurney.archive import Entry, tar_stream, zip_stream
from gurney.errors import Forbidden, NotFound
from gurney.model.payload import FileList, FileView, SignedFile, SignFiles
from gurney.objects.disposition import disposition
from gurney.paths import is_folder
from gurney.subjects import PAYLOAD_FILES, PAYLOAD_SIGN
from gurney.transfer import Get
from services.edge import download
from services.edge.call import Call

ZIP, TAR = "application/zip", "application/x-tar"
#: Files whose URLs are asked for at once.
PAGE = 256


async def send_archive(
    call: Call,
    payload: str | None,
    name: str,
    *,
    folder: str = "",
    before_end: Callable[[], Awaitable[None]] | None = None,
) -> web.StreamResponse:
    """Answer with all files of a payload, each verified; `payload` None: with an empty archive.

    `folder`: the path in the archive, `/` at its end, below which they lie.
    `before_end` is done when all bytes are out, before the answer ends: who has all of it knows that it was done.
    """
    media = media_of(call.request.headers.get(hdrs.ACCEPT, ""))
    packed = (tar_stream if media == TAR else zip_stream)(_below(folder, _entries(call, payload)))
    if before_end is not None:
        packed = _and_then(packed, before_end)
    saved_as = f"{name}.tar" if media == TAR else f"{name}.zip"
    headers = {
        hdrs.CONTENT_TYPE: media,
        hdrs.CONTENT_DISPOSITION: disposition(saved_as),
        hdrs.VARY: hdrs.ACCEPT,
        **download.SAFE,
    }
    async with contextlib.aclosing(packed) as chunks:
        return await download.stream(call, web.StreamResponse(headers=headers), chunks)


async def _below(folder: str, entries: AsyncIterator[Entry]) -> AsyncIterator[Entry]:
    async for entry in entries:
        yield replace(entry, path=folder + entry.path)


async def _and_then(chunks: AsyncGenerator[bytes, None], then: Callable[[], Awaitable[None]]) -> AsyncGenerator[bytes]:
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            yield chunk
    await then()


def media_of(accept: str) -> str:
    """Return the kind of archive: a zip, unless a tar is wanted more."""
    wishes: dict[str, float] = {}
    for wish in accept.lower().split(","):
        media, *parameters = (part.strip() for part in wish.split(";"))
        wishes[media] = next((_quality(each[2:]) for each in parameters if each.startswith("q=")), 1.0)
    tar, others = wishes.get(TAR, 0.0), max(wishes.get("application/*", 0.0), wishes.get("*/*", 0.0))
    return TAR if tar > wishes.get(ZIP, 0.0) and tar >= others else ZIP


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


async def _entries(call: Call, payload: str | None) -> AsyncIterator[Entry]:
    cursor: str | None = None
    while payload is not None:
        question = FileList(caller=call.caller, payload=payload, limit=PAGE, cursor=cursor)
        page = await call.ask(PAYLOAD_FILES, question)
        signed = await _signed(call, payload, [file.path for file in page.items if not is_folder(file.path)])
        for file in page.items:
            if is_folder(file.path):
                yield _folder(file)
            elif file.path in signed:
                yield _file(call, payload, signed[file.path])
        if page.next_cursor is None:
            return
        cursor = page.next_cursor


async def _signed(call: Call, payload: str, paths: Sequence[str]) -> dict[str, SignedFile]:
    """Return the files with their URLs; those that were removed since they were listed are left out."""
    if not paths:
        return {}
    try:
        found = await call.ask(PAYLOAD_SIGN, SignFiles(caller=call.caller, payload=payload, paths=tuple(paths)))
    except NotFound:
        if len(paths) == 1:
            return {}
        half = len(paths) // 2
        return await _signed(call, payload, paths[:half]) | await _signed(call, payload, paths[half:])
    return {signed.file.path: signed for signed in found.items}


def _folder(file: FileView) -> Entry:
    return Entry(file.path, 0, file.created_at, contextlib.nullcontext)  # type: ignore[arg-type]  # never opened


def _file(call: Call, payload: str, signed: SignedFile) -> Entry:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Get]:
        async with AsyncExitStack() as stack:
            try:
                get = await stack.enter_async_context(download.opened(signed))
            except Forbidden:  # its page took longer than the URL lives
                again = await _signed(call, payload, [signed.file.path])
                get = await stack.enter_async_context(download.opened(_same(signed, again)))
            yield get

    return Entry(signed.file.path, signed.file.size, signed.file.created_at, opened)


def _same(signed: SignedFile, again: dict[str, SignedFile]) -> SignedFile:
    found = again.get(signed.file.path)
    if found is None or found.file.sha256 != signed.file.sha256:
        raise NotFound(f"{signed.file.path} was changed while the archive was made")
    return found
