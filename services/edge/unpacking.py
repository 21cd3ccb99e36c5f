"""A payload made of an uploaded archive: spooled, judged, stored file by file, then opened; all of it, or nothing.

The spool has no name, so not even a killed server leaves it behind. Until the payload is opened nobody finds it; where
nobody is left to open it, its owner lets it go.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence

from aiohttp import web

from gurney import ids, telemetry
from gurney.archive import Limits, Member, Unpacked, unpack
from gurney.errors import Conflict, GurneyError, NotFound
from gurney.model.common import Ref
from gurney.model.payload import BegunUploads, CreatePayload, Payload, PayloadCreate, Uploaded
from gurney.settings import MIB
from gurney.spool import spooled
from gurney.subjects import PAYLOAD_CREATE, PAYLOAD_DISCARD, PAYLOAD_OPEN
from gurney.tasks import Together
from services.edge import upload
from services.edge.call import Call
from services.edge.packing import TAR, ZIP

MEDIA = (ZIP, "application/x-zip-compressed", TAR, "application/gzip", "application/x-gzip", "application/x-gtar")

#: Files and bytes that are begun and committed at once: few enough that their URLs live long enough.
BATCH, BATCH_BYTES = 256, 256 * MIB
#: Files up to this size are moved side by side; larger ones one after another.
SMALL, WIDTH = 1 * MIB, 8

Members = AsyncIterator[tuple[Member, AsyncIterator[bytes]]]

_log = telemetry.log("edge")


def is_archive(request: web.Request) -> bool:
    return request.content_type in MEDIA


async def make(call: Call, body: CreatePayload, *, transient: bool = False, zip_only: bool = False) -> Payload:
    """Return a payload with the files of the archive that is the request's body; `transient`: for one job to come."""
    most = call.edge.settings.max_upload
    upload.refuse_large(call.request.content_length or 0, most)
    limits = Limits(entries=call.edge.settings.max_archive_files, bytes=most, zip_only=zip_only)
    spooling = spooled(call.edge.settings.data / "spool", upload.chunks_of(call))
    async with spooling as spool, unpack(spool, limits) as archive:
        mine = ids.new_id("pay")
        question = PayloadCreate(
            id=mine,
            caller=call.caller,
            body=body,
            idempotency=call.idempotency() if call.route.idempotent else None,
            filling=True,
            transient=transient,
        )
        payload = await call.ask(PAYLOAD_CREATE, question)
        return await _filled(call, mine, archive) if payload.id == mine else payload  # else the request came before


# --- the payload ---


async def _filled(call: Call, payload: str, archive: Unpacked) -> Payload:
    """Fill the payload and open it. Where an answer is lost it may be open: then it stays, whole."""
    try:
        await _fill(call, payload, archive)
        return await call.ask(PAYLOAD_OPEN, Ref(caller=call.caller, ref=payload))
    except NotFound as error:
        raise Conflict("the archive took too long to store and was given up") from error
    except BaseException:
        await asyncio.shield(_undo(call, payload))
        raise


async def _fill(call: Call, payload: str, archive: Unpacked) -> None:
    members = aiter(archive)
    for batch in batches(archive.members):
        async with upload.begun(call, payload, [member.path for member in batch]) as uploads:
            await upload.commit(call, uploads, await _move(call, uploads, members))


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


async def _move(call: Call, uploads: BegunUploads, members: Members) -> list[Uploaded]:
    """Move a batch; the archive is read in its order, small files are written side by side."""
    gate = asyncio.Semaphore(WIDTH)
    begun = {item.path: item for item in uploads.items}
    moved: list[Uploaded] = []

    async def one(path: str, chunks: AsyncIterable[bytes]) -> None:
        try:
            moved.append(await upload.move(call, uploads.owner, begun[path], chunks))
        finally:
            gate.release()

    async with Together() as tasks:
        for _ in begun:
            member, chunks = await anext(members)
            await gate.acquire()
            if member.size > SMALL:
                await one(member.path, chunks)
            else:
                tasks.start(one(member.path, _again([chunk async for chunk in chunks])))
    return moved


async def _again(chunks: Sequence[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def _undo(call: Call, payload: str) -> None:
    """Let go what was made. Where the owner does not hear of it, his sweep does the same later."""
    try:
        await call.ask(PAYLOAD_DISCARD, Ref(caller=call.caller, ref=payload))
    except GurneyError as error:
        _log.info("payload is given up later", payload=payload, reason=error.code)
