"""A payload made of an uploaded archive: spooled, judged, then stored file by file; all of it, or nothing.

The spool has no name, so not even a killed server leaves it behind.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from aiohttp import web

from gurney import ids, telemetry
from gurney.archive import Limits, Member, Unpacked, unpack
from gurney.errors import GurneyError, Unavailable
from gurney.model.common import Ref
from gurney.model.payload import BegunUploads, CreatePayload, FileList, Payload, PayloadCreate, Uploaded
from gurney.objects.layout import translated
from gurney.objects.threads import hop
from gurney.settings import MIB
from gurney.subjects import PAYLOAD_CREATE, PAYLOAD_DELETE, PAYLOAD_FILES, PAYLOAD_GET
from gurney.tasks import Together
from services.edge import upload
from services.edge.call import Call
from services.edge.packing import TAR, ZIP

MEDIA = (ZIP, "application/x-zip-compressed", TAR, "application/gzip", "application/x-gzip", "application/x-gtar")

#: Files and bytes that are begun and committed at once: few enough that their URLs live long enough.
BATCH, BATCH_BYTES = 256, 256 * MIB
#: Files up to this size are moved side by side; larger ones one after another.
SMALL, WIDTH = 1 * MIB, 8
#: Pauses between tries to remove what was made.
UNDO_PAUSES_S = (0.0, 1.0, 2.0, 4.0)

Members = AsyncIterator[tuple[Member, AsyncIterator[bytes]]]

_log = telemetry.log("edge")


def is_archive(request: web.Request) -> bool:
    return request.content_type in MEDIA


async def make(call: Call, body: CreatePayload) -> Payload:
    """Return a payload with the files of the archive that is the request's body."""
    most = call.edge.settings.max_upload
    upload.refuse_large(call.request.content_length or 0, most)
    limits = Limits(entries=call.edge.settings.max_archive_files, bytes=most)
    async with _spooled(call) as spool, unpack(spool, limits) as archive:
        mine = ids.new_id("pay")
        question = PayloadCreate(id=mine, caller=call.caller, body=body, idempotency=call.idempotency())
        payload = await call.ask(PAYLOAD_CREATE, question)
        if payload.id == mine:
            await _fill_or_undo(call, payload.id, archive)
        else:  # repeated: whoever came first may have been killed before the end
            await _fill(call, payload.id, archive, await _paths(call, payload.id))
    return await call.ask(PAYLOAD_GET, Ref(caller=call.caller, ref=payload.id))


# --- the spool ---


@contextlib.asynccontextmanager
async def _spooled(call: Call) -> AsyncIterator[Path]:
    file = await hop(_unnamed, call.edge.settings.data / "spool")
    try:
        gathered: list[bytes] = []
        size = 0
        async for chunk in upload.chunks_of(call):
            gathered.append(chunk)
            size += len(chunk)
            if size >= SMALL:
                await hop(_write, file, gathered)
                gathered, size = [], 0
        await hop(_write, file, gathered)
        yield Path(f"/proc/self/fd/{file.fileno()}")
    finally:
        await hop(file.close)


@translated()
def _unnamed(folder: Path) -> IO[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder)


@translated()
def _write(file: IO[bytes], parts: Sequence[bytes]) -> None:
    for part in parts:
        file.write(part)
    file.flush()


# --- the payload ---


async def _fill_or_undo(call: Call, payload: str, archive: Unpacked) -> None:
    try:
        await _fill(call, payload, archive, frozenset())
    except BaseException:
        await asyncio.shield(_undo(call, payload))
        raise


async def _fill(call: Call, payload: str, archive: Unpacked, there: frozenset[str]) -> None:
    members = aiter(archive)
    for batch in batches(member for member in archive.members if member.path not in there):
        async with upload.begun(call, payload, [member.path for member in batch]) as uploads:
            await upload.commit(call, uploads, await _move(uploads, members))


def batches(members: Iterable[Member]) -> Iterator[list[Member]]:
    """Cut members, in their order, into batches of not too many files and bytes."""
    batch: list[Member] = []
    size = 0
    for member in members:
        if batch and (len(batch) >= BATCH or size + member.size > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(member)
        size += member.size
    if batch:
        yield batch


async def _move(uploads: BegunUploads, members: Members) -> list[Uploaded]:
    """Move a batch; the archive is read in its order, small files are written side by side."""
    gate = asyncio.Semaphore(WIDTH)
    begun = {item.path: item for item in uploads.items}
    moved: list[Uploaded] = []

    async def one(path: str, chunks: AsyncIterable[bytes]) -> None:
        try:
            moved.append(await upload.move(begun[path], chunks))
        finally:
            gate.release()

    async with Together() as tasks:
        left = len(begun)
        while left:
            member, chunks = await anext(members)
            if member.path not in begun:
                continue
            left -= 1
            await gate.acquire()
            if member.size > SMALL:
                await one(member.path, chunks)
            else:
                tasks.start(one(member.path, _again([chunk async for chunk in chunks])))
    return moved


async def _again(chunks: Sequence[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def _paths(call: Call, payload: str) -> frozenset[str]:
    found: set[str] = set()
    cursor: str | None = None
    while True:
        question = FileList(caller=call.caller, payload=payload, limit=1000, cursor=cursor)
        page = await call.ask(PAYLOAD_FILES, question)
        found |= {file.path for file in page.items}
        cursor = page.next_cursor
        if cursor is None:
            return frozenset(found)


async def _undo(call: Call, payload: str) -> None:
    """Remove what was made, and all that it has."""
    for pause in UNDO_PAUSES_S:
        await asyncio.sleep(pause)
        try:
            await call.ask(PAYLOAD_DELETE, Ref(caller=call.caller, ref=payload), slow=True)
        except Unavailable:
            continue
        except GurneyError as error:
            _log.warning("payload of a broken archive stays", payload=payload, reason=error.code)
        return
    _log.warning("payload of a broken archive stays", payload=payload, reason="nats_unavailable")
