"""The collections of the payload service and every query over them."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from unicodedata import normalize

from gurney.documents.port import Collection, Query, Where
from gurney.errors import Invalid
from gurney.model.common import Page
from gurney.model.payload import Claim, ClaimKind, File, FileList, FileView, Payload, PayloadList, PayloadState
from gurney.paging import cut, decode_cursor, encode_cursor, given, label_where, newest_first, scope_where
from gurney.store import Store
from services.payload import file_machine, machine, policy

PAYLOADS = Collection(
    "payloads",
    Payload,
    (
        ("created_at",),
        ("project", "created_at"),
        ("state", "created_at"),
        ("state", "updated_at"),
        ("job", "created_at"),
        ("transient", "updated_at"),
    ),
    filters=(("created_by", "created_at"), ("name", "created_at"), ("labels", "created_at")),
    fields=("doomed",),
)
FILES = Collection(
    "files",
    File,
    (("owner", "path"), ("owner", "changing.at"), ("unsettled",)),
    fields=("content.key", "content.size", "folder"),
)
CLAIMS = Collection(
    "claims", Claim, (("payload", "state", "created_at"), ("job", "created_at"), ("state", "created_at"))
)
COLLECTIONS = (PAYLOADS, FILES, CLAIMS)

#: Documents that are read and written at once.
BATCH = 256

_WITH_CONTENT = Where("content.key", "!=", None)


class Repository:
    """Reads what the service owns."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._documents = store.documents

    # --- payloads ---

    async def payload(self, payload_id: str) -> Payload | None:
        return await self._documents.get(PAYLOADS, payload_id)

    async def payload_by_key(self, key: str) -> Payload | None:
        return await self._documents.by_key(PAYLOADS, key)

    async def of_job(self, job: str) -> list[Payload]:
        """Return the results of a job and the drafts of its runs, whatever their state."""
        return await self._store.find(PAYLOADS, Where("job", "=", job))

    async def in_state(self, state: PayloadState, before: datetime) -> list[Payload]:
        """Return payloads that have been in this state since before a time, oldest first."""
        where = (Where("state", "=", state), Where("updated_at", "<", before))
        return await self._store.find(PAYLOADS, *where, sort=("updated_at", "id"))

    async def transient(self, before: datetime) -> list[Payload]:
        """Return transient payloads that nobody has changed since before a time, oldest first."""
        where = (Where("transient", "=", value=True), Where("updated_at", "<", before))
        return await self._store.find(PAYLOADS, *where, sort=("updated_at", "id"))

    async def page(self, asked: PayloadList) -> Page[Payload]:
        """Return a page of what the caller sees; drafts only where asked for."""
        state = asked.state or PayloadState.OPEN
        if state not in {PayloadState.OPEN, PayloadState.DRAFT}:
            raise Invalid.field("state", "must be open or draft")
        where = [
            *scope_where(*asked.caller.scope()),
            *given(
                name=("name", "=", asked.name and normalize("NFC", asked.name)),
                after=("created_at", ">=", asked.created_after),
                before=("created_at", "<", asked.created_before),
            ),
            *label_where(asked.labels),
            Where("state", "=", state),
            Where("doomed", "=", value=False),
        ]
        page = await newest_first(self._documents, PAYLOADS, where, asked.limit, asked.cursor)
        return page.but(items=tuple(await self.derived(page.items)))

    async def derived(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Return the payloads with what is counted when they are asked for."""
        ids = [payload.id for payload in payloads]
        if not ids:
            return []
        files, claims, held_by = await asyncio.gather(self._totals(ids), self._claims(ids), self._held_by(ids))
        return [
            payload.but(
                files=files.get(payload.id, (0, 0))[0],
                bytes=files.get(payload.id, (0, 0))[1],
                claims=claims.get(payload.id, (0, 0))[0],
                held_by=held_by.get(payload.id, ()),
            )
            for payload in payloads
        ]

    async def totals(self, owner: str) -> tuple[int, int]:
        """Return how many files an owner has, and their bytes."""
        return (await self._totals([owner])).get(owner, (0, 0))

    async def _totals(self, owners: Sequence[str]) -> dict[str, tuple[int, int]]:
        where = (_one_of("owner", owners), _WITH_CONTENT, Where("folder", "=", value=False))
        return await self._documents.totals_by(FILES, "owner", where, "content.size")

    async def _claims(self, ids: Sequence[str]) -> dict[str, tuple[int, int]]:
        return await self._documents.totals_by(CLAIMS, "payload", (_one_of("payload", ids),))

    async def _held_by(self, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        where = (_one_of("payload", ids), Where("state", "=", "holding"))
        held = list(await self._documents.totals_by(CLAIMS, "payload", where)) if len(ids) > 1 else ids
        holders = await asyncio.gather(*(self.holding(each) for each in held))
        return {each: tuple(claim.job for claim in claims) for each, claims in zip(held, holders, strict=True)}

    # --- files ---

    async def file(self, owner: str, path: str) -> File | None:
        return await self._documents.get(FILES, policy.file_id(owner, path))

    async def files_at(self, owner: str, paths: Sequence[str]) -> dict[str, File]:
        """Return what is known of these paths, by path."""
        found = await self._documents.get_many(FILES, [policy.file_id(owner, path) for path in paths])
        return {file.path: file for file in found}

    async def files_by_id(self, ids: Sequence[str]) -> dict[str, File]:
        return {file.id: file for file in await self._documents.get_many(FILES, ids)}

    async def file_page(self, owner: str, asked: FileList) -> Page[FileView]:
        """Return a page of the files that are there, by path."""
        where = [Where("owner", "=", owner), _WITH_CONTENT]
        if asked.prefix:
            where += [Where("path", ">=", asked.prefix), Where("path", "prefix", asked.prefix)]
        after = decode_cursor(asked.cursor, 1)
        query = Query(tuple(where), ("path",), descending=False, limit=asked.limit + 1, after=after)
        kept, more = cut(await self._documents.find(FILES, query), asked.limit)
        views = tuple(file_machine.view(file) for file in kept)
        return Page(items=views, next_cursor=encode_cursor(kept[-1].path) if more else None)

    async def some_files(self, owner: str) -> list[File]:
        """Return up to a batch of what an owner has, visible or not."""
        return await self._store.find(FILES, Where("owner", "=", owner), sort=("path",), limit=BATCH)

    async def unsettled(self, before: datetime, after: tuple[str, str] | None) -> list[File]:
        """Return up to a batch of files with something unfinished since before a time, oldest first."""
        where = (Where("unsettled", "<", before),)
        query = Query(where, ("unsettled", "id"), descending=False, limit=BATCH, after=after)
        return await self._documents.find(FILES, query)

    async def changing(self, owner: str) -> list[File]:
        """Return files whose change is announced and not made yet."""
        where = (Where("owner", "=", owner), Where("changing.at", "!=", None))
        return await self._store.find(FILES, *where, sort=("changing.at", "id"), limit=2 * BATCH)

    async def clashes(self, owner: str, paths: Sequence[str]) -> tuple[str, str] | None:
        """Return a path and a visible file beside which it cannot lie."""
        above = {other: path for path in paths for other in policy.files_above(path)}
        for other, file in (await self.files_at(owner, list(above))).items():
            if file.content:
                return above[other], other
        below = await asyncio.gather(*(self._first_below(owner, path) for path in paths))
        return next(((path, other) for path, other in zip(paths, below, strict=True) if other), None)

    async def _first_below(self, owner: str, path: str) -> str | None:
        bounds = policy.range_below(path)
        if bounds is None:
            return None
        where = (Where("owner", "=", owner), Where("path", ">=", bounds[0]), Where("path", "<", bounds[1]))
        found = await self._store.find(FILES, *where, _WITH_CONTENT, sort=("path",), limit=1)
        return found[0].path if found else None

    # --- claims ---

    async def claim(self, payload: str, job: str, kind: ClaimKind) -> Claim | None:
        return await self._documents.get(CLAIMS, machine.claim_id(payload, job, kind))

    async def holding(self, payload: str) -> list[Claim]:
        """Return the first claims that hold the payload, as many as are named."""
        where = (Where("payload", "=", payload), Where("state", "=", "holding"))
        return await self._store.find(CLAIMS, *where, limit=policy.NAMED_HOLDERS)

    async def claimed(self, payload: str) -> bool:
        """Tell whether there is any claim on the payload."""
        any_ = Where("payload", "=", payload)
        return bool(await self._store.find(CLAIMS, any_, sort=("state", "created_at", "id"), limit=1))

    async def claims_of(self, job: str) -> list[Claim]:
        return await self._store.find(CLAIMS, Where("job", "=", job))

    async def held_before(self, before: datetime, after: tuple[str, str] | None) -> list[Claim]:
        """Return up to a batch of holding claims that are older than a time, oldest first."""
        where = (Where("state", "=", "holding"), Where("created_at", "<", before))
        return await self._documents.find(CLAIMS, Query(where, descending=False, limit=BATCH, after=after))


def _one_of(field: str, values: Sequence[str]) -> Where:
    return Where(field, "=", values[0]) if len(values) == 1 else Where(field, "in", list(values))
