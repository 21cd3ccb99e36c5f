"""The port `objects` on an S3 server: MinIO, or another that keeps `If-None-Match` on PUT and on the end of parts.

Buckets, lists and deletions go through the SDK, in threads; what is small and often asked goes over our own URLs.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import islice

import aiohttp
from minio import Minio
from minio.datatypes import Object
from minio.deleteobjects import DeleteObject

from gurney import clock
from gurney.errors import NotFound, StoreUnavailable
from gurney.model.payload import SignedUpload, WantedParts
from gurney.objects import calls
from gurney.objects.disposition import BINARY, disposition
from gurney.objects.port import URL_LIFETIME_S, ObjectInfo, check_key
from gurney.objects.s3_account import Account, closing_pool
from gurney.objects.s3_uploads import Upload, of_answer, upload_id
from gurney.objects.sessions import pooled
from gurney.objects.threads import hop
from gurney.tasks import spread

#: Most that one question lists or deletes, and how many questions are asked side by side.
_BATCH, _WIDTH = 1_000, 8
_MOST_PARTS = 10_000


class S3Objects:
    """Keeps objects in a bucket, which it makes where it is missing. Several may be open on one bucket."""

    def __init__(self, account: Account, now: Callable[[], datetime] = clock.now) -> None:
        self._account = account
        self._now = now
        self._stack = AsyncExitStack()
        self._client: Minio | None = None
        self._http: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        async with AsyncExitStack() as stack:
            pool = stack.enter_context(closing_pool())
            self._client = await calls.persist(partial(hop, self._account.connect, pool))
            self._http = await stack.enter_async_context(pooled())
            self._stack = stack.pop_all()

    async def close(self) -> None:
        self._client = self._http = None
        await self._stack.aclose()

    # --- URLs for others ---

    def sign_put(self, key: str) -> str:
        return self._sign("PUT", key, headers=calls.ONCE)

    def sign_get(self, key: str, saved_as: str | None = None) -> str:
        if saved_as is None:
            return self._sign("GET", key)
        # A browser must not run what it gets: it has no other header of ours to tell it so.
        told = {"response-content-disposition": disposition(saved_as), "response-content-type": BINARY}
        return self._sign("GET", key, told)

    async def sign_upload(self, key: str, parts: WantedParts | None = None) -> SignedUpload:
        whole = SignedUpload(put=self.sign_put(key), get=self.sign_get(key))
        if parts is None:
            return whole
        upload = parts.upload or upload_id(await self._ask("POST", key, {"uploads": ""}))
        numbers = range(parts.first, min(parts.first + parts.count, _MOST_PARTS + 1))
        query = {"uploadId": upload}
        return whole.but(
            upload=upload,
            parts=tuple(self._sign("PUT", key, {"partNumber": str(number), **query}) for number in numbers),
            complete=self._sign("POST", key, query, calls.ONCE),
            abort=self._sign("DELETE", key, query),
        )

    def _sign(
        self, method: str, key: str, query: dict[str, str] | None = None, headers: dict[str, str] | None = None
    ) -> str:
        self._require_open()
        return self._account.url(method, check_key(key), query, headers, at=self._now(), lifetime_s=URL_LIFETIME_S)

    # --- what the service asks itself ---

    async def stat(self, key: str) -> ObjectInfo | None:
        try:
            answer = await self._ask("HEAD", key)
        except NotFound:
            return None
        modified = parsedate_to_datetime(answer.headers["Last-Modified"])
        return ObjectInfo(key, int(answer.headers["Content-Length"]), modified)

    async def delete(self, keys: Iterable[str]) -> None:
        left = iter([check_key(key) for key in keys])
        while batch := list(islice(left, _BATCH)):
            await calls.persist(partial(hop, self._delete, batch))

    async def give_up(self, keys: Iterable[str]) -> None:
        wanted = list(keys)
        uploads: list[Upload] = []

        async def find(key: str) -> None:
            # By exact keys: a restarted MinIO lists its uploads in no other way.
            uploads.extend([upload async for upload in self._uploads(check_key(key)) if upload.key == key])

        await spread(find, wanted, _WIDTH)
        await spread(self._abort, uploads, _WIDTH)
        await self.delete(wanted)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        found = self._list(prefix)
        while batch := await hop(self._take, found):
            for info in batch:
                yield info

    async def sweep(self, older_than_s: float) -> int:
        before = clock.now() - timedelta(seconds=older_than_s)
        old = [upload async for upload in self._uploads() if upload.begun_at < before]
        await spread(self._abort, old, _WIDTH)
        return len(old)

    async def _uploads(self, prefix: str = "") -> AsyncIterator[Upload]:
        """Iterate over the uploads in parts that are not complete."""
        query = {"uploads": "", "prefix": prefix}
        while True:
            uploads, after = of_answer(await self._ask("GET", None, query))
            for upload in uploads:
                yield upload
            if not after:
                return
            query |= after

    async def _abort(self, upload: Upload) -> None:
        try:
            await self._ask("DELETE", upload.key, {"uploadId": upload.id})
        except calls.UploadGone:
            return

    async def _ask(self, method: str, key: str | None, query: dict[str, str] | None = None) -> calls.Answer:
        """Ask on the way that only this service takes: its own address of the server, and its own clock."""
        session = self._require_open()
        if key is not None:
            check_key(key)

        async def attempt() -> calls.Answer:
            url = self._account.url(method, key, query, at=clock.now(), lifetime_s=URL_LIFETIME_S, internal=True)
            with self._account.refusing():
                return await calls.call(session, method, url)

        return await calls.persist(attempt)

    def _require_open(self) -> aiohttp.ClientSession:
        if self._http is None or self._client is None:
            raise StoreUnavailable("the object store is not open")
        return self._http

    # --- what runs in threads ---

    def _delete(self, keys: Sequence[str]) -> None:
        with self._account.translated():
            if len(keys) == 1:
                self._sdk.remove_object(self._account.bucket, keys[0])
                return
            for fault in self._sdk.remove_objects(self._account.bucket, [DeleteObject(key) for key in keys]):
                raise StoreUnavailable(f"the object store does not delete: {fault.code}")

    def _list(self, prefix: str) -> Iterator[Object]:
        yield from self._sdk.list_objects(self._account.bucket, prefix=prefix, recursive=True)

    def _take(self, found: Iterator[Object]) -> Sequence[ObjectInfo]:
        with self._account.translated():
            return [_info(each) for each in islice(found, _BATCH)]

    @property
    def _sdk(self) -> Minio:
        if self._client is None:
            raise StoreUnavailable("the object store is not open")
        return self._client


def _info(found: Object) -> ObjectInfo:
    if found.object_name is None or found.last_modified is None:
        raise StoreUnavailable("the object store lists objects without names or times")
    return ObjectInfo(found.object_name, found.size or 0, found.last_modified)
