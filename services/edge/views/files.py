"""Files of payloads: list, upload, download, remove."""

from typing import Annotated

from aiohttp import web
from aiohttp.hdrs import ETAG
from pydantic import Field

from gurney.model.common import Empty
from gurney.model.payload import FileList, RemoveFile, SignedFile, SignFiles
from gurney.paths import MAX_PATH_BYTES
from gurney.subjects import PAYLOAD_FILES, PAYLOAD_REMOVE, PAYLOAD_SIGN
from services.edge import ranges, respond, upload
from services.edge.call import Call
from services.edge.download import send_file
from services.edge.parse import Paged


class FilesQuery(Paged):
    prefix: Annotated[str, Field(max_length=MAX_PATH_BYTES)] = ""


async def index(call: Call) -> web.Response:
    asked = call.query(FilesQuery).filters()
    return respond.document(
        await call.ask(PAYLOAD_FILES, FileList(caller=call.caller, payload=call.text("payload"), **asked))
    )


async def put(call: Call) -> web.Response:
    """Store the body under the path: 201 where it is new, 200 where it replaces another."""
    path = upload.path_of(call.request)
    upload.refuse_large(call.request.content_length or 0, call.edge.settings.max_upload)
    done = await upload.put(call, call.text("payload"), path, upload.chunks_of(call))
    file = done.items[0]
    return respond.document(file, 200 if done.replaced else 201, headers={ETAG: ranges.etag(file.sha256)})


async def get(call: Call) -> web.StreamResponse:
    path = upload.path_of(call.request)

    async def sign() -> SignedFile:
        return await sign_one(call, call.text("payload"), path)

    return await send_file(call, sign)


async def delete(call: Call) -> web.Response:
    """Remove what the file is now: a removal that comes late takes nothing away that came since."""
    path, payload = upload.path_of(call.request), call.text("payload")

    async def remove(**_: bool) -> Empty:
        known = (await sign_one(call, payload, path)).last_change
        question = RemoveFile(caller=call.caller, payload=payload, path=path, after=known)
        return await call.ask(PAYLOAD_REMOVE, question, slow=True)

    await upload.over_what_is(remove)
    return respond.nothing()


async def sign_one(call: Call, payload: str, path: str) -> SignedFile:
    """Return a file of a payload with the URL of its bytes."""
    named = call.edge.settings.s3_redirect
    question = SignFiles(caller=call.caller, payload=payload, paths=(path,), named=named)
    signed = await call.ask(PAYLOAD_SIGN, question)
    return signed.items[0]
