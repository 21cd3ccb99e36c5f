"""The file part of a multipart body, on disk while the request is answered."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import BodyPartReader, ClientPayloadError, web
from aiohttp.http_exceptions import BadHttpMessage

from gurney.spool import spooled
from services.inference_server.replies import Refused, fault

CHUNK = 1 << 18
#: What a body that breaks off, or is none, may raise.
BROKEN = (ValueError, BadHttpMessage, ClientPayloadError, ConnectionError)
TOO_LARGE = 413


@asynccontextmanager
async def posted(request: web.Request, name: str, folder: Path, most: int) -> AsyncIterator[Path | None]:
    """Yield the file of this name; None where there is none. Raises `Refused`."""
    part = await _part(request, name)
    if part is None:
        yield None
    else:
        async with spooled(folder, _chunks(part, name, most)) as archive:
            yield archive


async def _part(request: web.Request, name: str) -> BodyPartReader | None:
    if not request.content_type.startswith("multipart/"):
        return None
    try:
        async for part in await request.multipart():
            if isinstance(part, BodyPartReader) and part.name == name and part.filename is not None:
                return part
    except BROKEN:
        return None
    return None


async def _chunks(part: BodyPartReader, name: str, most: int) -> AsyncIterator[bytes]:
    size = 0
    try:
        while chunk := await part.read_chunk(CHUNK):
            size += len(chunk)
            if size > most:
                raise Refused(TOO_LARGE, f"at most {most} bytes are allowed")
            yield chunk
    except BROKEN as error:
        raise Refused(422, [fault(["body", name], "broke off, or is malformed")]) from error
