"""Bytes on their way to a client: whole files are held against their digest, ranges rely on the store."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from mimetypes import MimeTypes

from aiohttp import hdrs, web

from gurney import telemetry
from gurney.errors import Forbidden, NotFound
from gurney.model.payload import FileView, SignedFile
from gurney.objects.disposition import BINARY, disposition
from gurney.paths import is_folder
from gurney.transfer import Digest, Get, open_get
from services.edge import ranges, respond
from services.edge.call import Call

#: Asks the owner for the file and its URL.
Sign = Callable[[], Awaitable[SignedFile]]

# Python's own table: that of the host would be read from disk, and differ from host to host.
_TYPES = MimeTypes(filenames=())
_TYPES.add_type("application/dicom", ".dcm")

#: What a browser must not do with a file of a payload: guess what it is, or run it.
SAFE = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox"}


async def send_file(call: Call, sign: Sign) -> web.StreamResponse:
    """Answer with a file or a range of it; HEAD with what GET would say of it."""
    signed = await sign()
    try:
        return await _send(call, signed)
    except (Forbidden, NotFound):  # the URL has lapsed, or the file was replaced, in this moment
        return await _send(call, await sign())


async def _send(call: Call, signed: SignedFile) -> web.StreamResponse:
    file, headers = signed.file, call.request.headers
    tag = ranges.etag(file.sha256)
    if ranges.not_modified(headers.get(hdrs.IF_NONE_MATCH), tag):
        return web.Response(status=304, headers={hdrs.ETAG: tag})
    if _redirected(call, signed):
        return web.Response(status=307, headers={hdrs.LOCATION: signed.url, hdrs.CACHE_CONTROL: "no-store"})
    part = _span(headers, tag, file.size)
    response = web.StreamResponse(status=206 if part else 200, headers=_describing(file, tag))
    response.content_length = part.length if part else file.size
    if part:
        response.headers[hdrs.CONTENT_RANGE] = part.content_range(file.size)
    if call.request.method == hdrs.METH_HEAD or is_folder(file.path):
        return response
    async with opened(signed, part) as chunks:
        return await stream(call, response, chunks)


def _redirected(call: Call, signed: SignedFile) -> bool:
    """Tell whether the client shall fetch the bytes itself; HEAD and empty folders have none."""
    wanted = call.edge.settings.s3_redirect and call.request.method == hdrs.METH_GET
    return wanted and signed.url.startswith("http") and not is_folder(signed.file.path)


def opened(signed: SignedFile, part: ranges.Span | None = None) -> AbstractAsyncContextManager[Get]:
    """Open a file's bytes, or a part of them; the whole is verified on its way."""
    if part:
        return open_get(signed.url, part.offset, part.length)
    return open_get(signed.url, expected=Digest(signed.file.size, signed.file.sha256))


def _span(headers: Mapping[str, str], tag: str, size: int) -> ranges.Span | None:
    try:
        return ranges.span(headers.get(hdrs.RANGE), headers.get(hdrs.IF_RANGE), tag, size)
    except ranges.Unsatisfiable:
        raise web.HTTPRequestRangeNotSatisfiable(headers={hdrs.CONTENT_RANGE: f"bytes */{size}"}) from None


def _describing(file: FileView, tag: str) -> dict[str, str]:
    name = file.path.rstrip("/").rpartition("/")[2]
    return {
        hdrs.CONTENT_TYPE: _TYPES.guess_type(name)[0] or BINARY,
        hdrs.ETAG: tag,
        hdrs.ACCEPT_RANGES: "bytes",
        hdrs.CONTENT_DISPOSITION: disposition(name),
        **SAFE,
    }


async def stream(call: Call, response: web.StreamResponse, chunks: AsyncIterable[bytes]) -> web.StreamResponse:
    """Send chunks. What fails after the head went out breaks the connection, so no client takes it for whole."""
    sent = 0
    try:
        async for chunk in chunks:
            if not response.prepared:  # not before the first bytes are there: until then an error is a problem document
                await response.prepare(call.request)
            async with _is_read():
                await response.write(chunk)
            sent += len(chunk)
        if not response.prepared:
            await response.prepare(call.request)
        async with _is_read():
            await response.write_eof()
    except ConnectionError:  # the client went away
        if call.request.transport is not None:
            call.request.transport.abort()
    finally:
        telemetry.BYTES.labels("out").inc(sent)
    return response


@asynccontextmanager
async def _is_read() -> AsyncIterator[None]:
    """Take a client that does not read what is written for gone: he holds a connection, and one to the store."""
    try:
        async with asyncio.timeout(respond.STUCK_S):
            yield
    except TimeoutError as error:
        raise ConnectionError from error
