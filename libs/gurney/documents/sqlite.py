"""Documents in SQLite: one writer thread that takes all that waits into one transaction and answers after COMMIT.

The file belongs to one process (the data folder's lock sees to that), so a bounded cache of frozen documents
answers reads.
Schema: a table per collection (id, revision, keys, body), `keys` for uniqueness, `outbox` for events.
"""

import asyncio
import json
import queue
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from gurney import clock
from gurney.documents.port import Collection, D, Query, Where, Write
from gurney.documents.sqlite_query import Sql, field_sql, find_sql, where_sql
from gurney.errors import GurneyError, KeyTaken, RevisionConflict, StoreUnavailable
from gurney.model.base import Document
from gurney.model.event import Event

T = TypeVar("T")

CACHED_DOCUMENTS = 4096
BATCH = 512
LAZY_SETTLE_S = 0.25


@dataclass(slots=True)
class _Batch:
    """Writes of one caller, and who waits for them."""

    writes: list[tuple[Write, str | None]]
    done: Callable[[list[GurneyError | None]], None]
    #: Collection and id of events to take out of the outbox.
    settled: Sequence[tuple[str, str]] = ()


class SqliteDocuments:
    """The adapter. `sync` `full`: fsync before the answer; `normal`: the last moments may be lost in a power cut."""

    def __init__(self, path: Path, *, sync: Literal["full", "normal"] = "full") -> None:
        self._path = path
        self._sync = sync
        self._inbox: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._settled: list[tuple[str, str]] = []
        self._settle_timer: asyncio.TimerHandle | None = None
        self._cache: OrderedDict[tuple[str, str], Document | None] = OrderedDict()
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="documents-read")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._writer: threading.Thread | None = None

    # --- life ---

    async def open(self, collections: Iterable[Collection[Any]]) -> None:
        await asyncio.to_thread(self._create, tuple(collections))
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_loop, name="documents-write", daemon=True)
            self._writer.start()

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
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={self._sync}")
        connection.execute("PRAGMA cache_size=-4096")
        self._connections.append(connection)
        return connection

    def _create(self, collections: tuple[Collection[Any], ...]) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            connection = self._connect()
            self._path.chmod(0o600)
            for statement in _schema(collections):
                connection.execute(statement)
            connection.close()
            self._connections.remove(connection)
        except (OSError, sqlite3.Error) as error:
            raise StoreUnavailable(f"cannot open the documents in {self._path}: {error}") from error

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
            condition = where_sql([Where("id", "in", missing)])
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
        rows = await self._read(find_sql(collection.name, query))
        return [collection.model.decode(body) for (body,) in rows]

    async def totals(
        self, collection: Collection[D], where: Sequence[Where], field: str | None = None
    ) -> tuple[int, int]:
        condition = where_sql(where)
        total = f"coalesce(sum({field_sql(field)}), 0)" if field else "0"
        sql = f'SELECT count(*), {total} FROM "{collection.name}" WHERE {condition.text}'  # noqa: S608
        rows = await self._read(Sql(sql, condition.values))
        return int(rows[0][0]), int(rows[0][1])

    async def totals_by(
        self, collection: Collection[D], by: str, where: Sequence[Where], field: str | None = None
    ) -> dict[Any, tuple[int, int]]:
        condition = where_sql(where)
        total = f"coalesce(sum({field_sql(field)}), 0)" if field else "0"
        sql = (
            f"SELECT {field_sql(by)}, count(*), {total} "  # noqa: S608
            f'FROM "{collection.name}" WHERE {condition.text} GROUP BY 1'
        )
        return {group: (count, int(sum_)) for group, count, sum_ in await self._read(Sql(sql, condition.values))}

    async def unpublished(self, collection: Collection[Any], older_than_s: float) -> list[Event]:
        self._settle_now()
        await self.cas([])  # the writer has done that when it answers
        sql = "SELECT event FROM outbox WHERE collection = ? AND at <= ? ORDER BY seq LIMIT 1000"
        rows = await self._read(Sql(sql, (collection.name, clock.now().timestamp() - older_than_s)))
        return [Event.decode(event) for (event,) in rows]

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
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[list[GurneyError | None]] = loop.create_future()

        def answer(results: list[GurneyError | None]) -> None:
            for write, fault in zip(writes, results, strict=True):
                slot = (write.collection.name, write.id)
                if fault is None:
                    self._remember(slot, write.document)
                else:
                    self._cache.pop(slot, None)
            if not answered.done():
                answered.set_result(results)

        def done(results: list[GurneyError | None]) -> None:
            loop.call_soon_threadsafe(answer, results)

        encoded = [(write, write.document.model_dump_json() if write.document else None) for write in writes]
        self._inbox.put(_Batch(encoded, done))
        return await answered

    async def settle(self, collection: Collection[Any], event_ids: Sequence[str]) -> None:
        self._settled.extend((collection.name, each) for each in event_ids)
        if self._settle_timer is None:
            self._settle_timer = asyncio.get_running_loop().call_later(LAZY_SETTLE_S, self._settle_now)

    def _settle_now(self) -> None:
        self._settle_timer = None
        settled, self._settled = self._settled, []
        self._inbox.put(_Batch([], lambda _: None, settled))

    def _write_loop(self) -> None:
        connection = self._connect()
        while (first := self._inbox.get()) is not None:
            batches = [first]
            while len(batches) < BATCH and not self._inbox.empty():
                following = self._inbox.get()
                if following is None:
                    self._inbox.put(None)
                    break
                batches.append(following)
            try:
                results = _commit(connection, batches)
            except sqlite3.Error as error:
                fault = StoreUnavailable(f"cannot write the documents: {error}")
                results = [[fault] * len(batch.writes) for batch in batches]
            for batch, result in zip(batches, results, strict=True):
                batch.done(result)


def _commit(connection: sqlite3.Connection, batches: Sequence[_Batch]) -> list[list[GurneyError | None]]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        results = [[_apply(connection, write, body) for write, body in batch.writes] for batch in batches]
        settled = [each for batch in batches for each in batch.settled]
        connection.executemany("DELETE FROM outbox WHERE collection = ? AND id = ?", settled)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return results


def _apply(connection: sqlite3.Connection, write: Write, body: str | None) -> GurneyError | None:
    """Do one write within the open transaction, or say why not and change nothing."""
    table = write.collection.name
    row = connection.execute(f'SELECT revision, keys FROM "{table}" WHERE id = ?', (write.id,)).fetchone()  # noqa: S608
    found = row[0] if row else 0
    if found != write.expected:
        return RevisionConflict(f"{table} {write.id} is at revision {found}, not {write.expected}")
    before = set(json.loads(row[1])) if row else set()
    after = set(write.document.unique_keys()) if write.document else set()
    for key in after - before:
        holder = connection.execute("SELECT id FROM keys WHERE collection = ? AND key = ?", (table, key)).fetchone()
        if holder:
            return KeyTaken(key, holder[0])
    connection.executemany(
        "DELETE FROM keys WHERE collection = ? AND key = ?", [(table, key) for key in before - after]
    )
    connection.executemany("INSERT INTO keys VALUES (?, ?, ?)", [(table, key, write.id) for key in after - before])
    if write.document is None:
        connection.execute(f'DELETE FROM "{table}" WHERE id = ?', (write.id,))  # noqa: S608
    else:
        connection.execute(
            f'INSERT OR REPLACE INTO "{table}" (id, revision, keys, body) VALUES (?, ?, ?, ?)',  # noqa: S608
            (write.id, write.document.revision, json.dumps(sorted(after)), body),
        )
    connection.executemany(
        "INSERT OR IGNORE INTO outbox (id, collection, at, event) VALUES (?, ?, ?, ?)",
        [(event.id, table, clock.now().timestamp(), event.model_dump_json()) for event in write.events],
    )
    return None


def _schema(collections: tuple[Collection[Any], ...]) -> Iterable[str]:
    yield (
        "CREATE TABLE IF NOT EXISTS keys (collection TEXT NOT NULL, key TEXT NOT NULL, id TEXT NOT NULL, "
        "PRIMARY KEY (collection, key)) WITHOUT ROWID"
    )
    yield (
        "CREATE TABLE IF NOT EXISTS outbox (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, "
        "collection TEXT NOT NULL, at REAL NOT NULL, event TEXT NOT NULL, UNIQUE (collection, id))"
    )
    for collection in collections:
        table = collection.name
        yield (
            f'CREATE TABLE IF NOT EXISTS "{table}" (id TEXT PRIMARY KEY, revision INTEGER NOT NULL, '
            "keys TEXT NOT NULL, body TEXT NOT NULL) WITHOUT ROWID"
        )
        for index in collection.indexes:
            fields = ", ".join(field_sql(field) for field in (*index, "id"))
            yield f'CREATE INDEX IF NOT EXISTS "{table}:{",".join(index)}" ON "{table}" ({fields})'
