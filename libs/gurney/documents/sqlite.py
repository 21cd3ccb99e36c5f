"""Documents in SQLite: writes go to one writer thread, queries to two readers.

The file belongs to one process (the data folder's lock sees to that), so a bounded cache of frozen documents
answers reads.
"""

import asyncio
import queue
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from gurney import clock
from gurney.documents.port import Collection, D, Query, Where, Write
from gurney.documents.sqlite_query import Sql, find_sql, totals_sql, where_sql
from gurney.documents.sqlite_table import make_tables
from gurney.documents.sqlite_write import Answer, Batch, write_loop
from gurney.errors import GurneyError, StoreUnavailable
from gurney.model.base import Document
from gurney.model.event import Event

CACHED_DOCUMENTS = 4096
LAZY_SETTLE_S = 0.25


class SqliteDocuments:
    """The adapter. `sync` `full`: fsync before the answer; `normal`: the last moments may be lost in a power cut."""

    def __init__(self, path: Path, *, sync: Literal["full", "normal"] = "full") -> None:
        self._path = path
        self._sync = sync
        self._inbox: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._settled: list[tuple[str, str]] = []
        self._settle_timer: asyncio.TimerHandle | None = None
        self._cache: OrderedDict[tuple[str, str], Document | None] = OrderedDict()
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="documents-read")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._writer: threading.Thread | None = None

    # --- life ---

    async def open(self, collections: Iterable[Collection[Any]]) -> None:
        connection = await asyncio.to_thread(self._create, tuple(collections))
        if self._writer is None:
            loop = asyncio.get_running_loop()

            def answer(answers: Sequence[Answer]) -> None:
                loop.call_soon_threadsafe(self._answer, answers)

            self._writer = threading.Thread(
                target=write_loop, args=(connection, self._inbox, answer), name="documents-write", daemon=True
            )
            self._writer.start()
        else:
            self._connections.remove(connection)
            await asyncio.to_thread(connection.close)

    async def close(self) -> None:
        if self._settle_timer:
            self._settle_timer.cancel()
        if self._writer:
            self._inbox.put(None)
            await asyncio.to_thread(self._writer.join)
            self._writer = None
        await asyncio.to_thread(self._readers.shutdown)
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=10)
        self._connections.append(connection)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={self._sync}")
        connection.execute("PRAGMA cache_size=-4096")
        connection.execute("PRAGMA wal_autocheckpoint=4000")
        connection.execute("PRAGMA secure_delete=ON")
        return connection

    def _create(self, collections: tuple[Collection[Any], ...]) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            connection = self._connect()
            self._path.chmod(0o600)
            make_tables(connection, collections)
        except (OSError, sqlite3.Error) as error:
            raise StoreUnavailable(f"cannot open the documents in {self._path}: {error}") from error
        return connection

    # --- reads ---

    async def get(self, collection: Collection[D], id: str) -> D | None:  # noqa: A002
        slot = (collection.name, id)
        if slot in self._cache:
            self._cache.move_to_end(slot)
            return self._cache[slot]  # type: ignore[return-value]  # the slot names the collection
        rows = await self._read(Sql(f'SELECT body FROM "{collection.name}" WHERE id = ?', (id,)))  # noqa: S608
        if slot not in self._cache:  # a write that was answered meanwhile knows better
            self._remember(slot, collection.model.decode(rows[0][0]) if rows else None)
        return self._cache[slot]  # type: ignore[return-value]

    async def get_many(self, collection: Collection[D], ids: Sequence[str]) -> list[D]:
        missing = [each for each in dict.fromkeys(ids) if (collection.name, each) not in self._cache]
        known = {each: self._cache.get((collection.name, each)) for each in ids}
        if missing:
            condition = where_sql(collection, [Where("id", "in", missing)])
            sql = f'SELECT id, body FROM "{collection.name}" WHERE {condition.text}'  # noqa: S608
            rows = {id_: collection.model.decode(body) for id_, body in await self._read(Sql(sql, condition.values))}
            for each in missing:
                slot = (collection.name, each)
                if slot not in self._cache:  # a write that was answered meanwhile knows better
                    self._remember(slot, rows.get(each))
                known[each] = self._cache.get(slot, rows.get(each))
        return [document for document in known.values() if document is not None]  # type: ignore[misc]

    async def by_key(self, collection: Collection[D], key: str) -> D | None:
        rows = await self._read(Sql("SELECT id FROM keys WHERE collection = ? AND key = ?", (collection.name, key)))
        return await self.get(collection, rows[0][0]) if rows else None

    async def find(self, collection: Collection[D], query: Query) -> list[D]:
        rows = await self._read(find_sql(collection, query))
        return [collection.model.decode(body) for (body,) in rows]

    async def totals(
        self, collection: Collection[D], where: Sequence[Where], field: str | None = None
    ) -> tuple[int, int]:
        ((count, sum_),) = await self._read(totals_sql(collection, where, field))
        return int(count), int(sum_)

    async def totals_by(
        self, collection: Collection[D], by: str, where: Sequence[Where], field: str | None = None
    ) -> dict[Any, tuple[int, int]]:
        rows = await self._read(totals_sql(collection, where, field, by))
        return {group: (count, int(sum_)) for group, count, sum_ in rows}

    async def unpublished(self, collection: Collection[Any], older_than_s: float) -> list[Event]:
        self._settle_now()
        await self.cas([])  # the writer has done that when it answers
        fields = ("id", "subject", "source", "at", "traceparent", "body")
        sql = f"SELECT {', '.join(fields)} FROM outbox WHERE collection = ? AND written <= ? ORDER BY seq LIMIT 1000"  # noqa: S608
        rows = await self._read(Sql(sql, (collection.name, clock.now().timestamp() - older_than_s)))
        return [Event.model_validate(dict(zip(fields, row, strict=True))) for row in rows]

    async def _read(self, sql: Sql) -> list[tuple[Any, ...]]:
        def read() -> list[tuple[Any, ...]]:
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = self._connect()
            rows: list[tuple[Any, ...]] = connection.execute(sql.text, sql.values).fetchall()
            return rows

        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, read)
        except sqlite3.Error as error:
            raise StoreUnavailable(f"cannot read the documents: {error}") from error

    def _remember(self, slot: tuple[str, str], document: Document | None) -> None:
        self._cache[slot] = document
        self._cache.move_to_end(slot)
        if len(self._cache) > CACHED_DOCUMENTS:
            self._cache.popitem(last=False)

    # --- writes ---

    async def cas(self, writes: Sequence[Write]) -> list[GurneyError | None]:
        answered: asyncio.Future[list[GurneyError | None]] = asyncio.get_running_loop().create_future()
        encoded = [(write, write.document.model_dump_json() if write.document else None) for write in writes]
        self._inbox.put(Batch(encoded, answered))
        return await answered

    def _answer(self, answers: Sequence[Answer]) -> None:
        """Remember what was written, then wake who waits."""
        for batch, results in answers:
            for (write, _), fault in zip(batch.writes, results, strict=True):
                slot = (write.collection.name, write.id)
                if fault is None:
                    self._remember(slot, write.document)
                else:
                    self._cache.pop(slot, None)
            if batch.answered and not batch.answered.done():
                batch.answered.set_result(results)

    async def settle(self, collection: Collection[Any], event_ids: Sequence[str]) -> None:
        self._settled.extend((collection.name, each) for each in event_ids)
        if self._settle_timer is None:
            self._settle_timer = asyncio.get_running_loop().call_later(LAZY_SETTLE_S, self._settle_now)

    def _settle_now(self) -> None:
        self._settle_timer = None
        settled, self._settled = self._settled, []
        self._inbox.put(Batch([], None, settled))
