"""The file part of a multipart body, on disk while the request is answered."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import BodyPartReader, MultipartReader, web

from gurney.facade import BROKEN, file_part
from gurney.spool import spooled
from services.inference_server.replies import Refused, fault

CHUNK = 1 << 18
TOO_LARGE = 413


@asynccontextmanager
async def posted(request: web.Request, name: str, folder: Path, most: int) -> AsyncIterator[Path | None]:
    """Yield the file of this name; None where there is none. Raises `Refused`."""
    found = await file_part(request, name)
    if found is None:
        yield None
    else:
        async with spooled(folder, _chunks(*found, name, most)) as archive:
            yield archive


async def _chunks(reader: MultipartReader, part: BodyPartReader, name: str, most: int) -> AsyncIterator[bytes]:
    size = 0
    try:
        while chunk := await part.read_chunk(CHUNK):
            size += len(chunk)
            if size > most:
                raise Refused(TOO_LARGE, f"at most {most} bytes are allowed")
            yield chunk
        await reader.next()  # a part that nothing ends has been cut
    except BROKEN as error:
        raise Refused(422, [fault(["body", name], "broke off, or is malformed")]) from error
