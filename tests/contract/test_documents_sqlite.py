"""What SQLite does beside the contract: columns for indexed fields, plans, files of other versions."""

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gurney.documents.port import Collection, Query, Where, Write
from gurney.documents.sqlite import SqliteDocuments
from gurney.documents.sqlite_query import column, extracted, find_sql, indexed, totals_sql
from gurney.documents.sqlite_table import make_tables
from gurney.documents.sqlite_write import Batch, commit
from gurney.errors import StoreUnavailable
from gurney.model.base import Message, Owned, Timestamp
from gurney.model.event import Event
from tests.contract.api_queries import COLLECTIONS, Recorder, recorded

START = datetime(2026, 1, 1, tzinfo=UTC)


class Inner(Message):
    at: Timestamp


class Part(Owned):
    """A document with a field of each kind that is indexed somewhere."""

    state: str = "new"
    size: int = 0
    done: bool = False
    inner: Inner | None = None


PARTS = Collection("parts", Part, (("state", "created_at"), ("size",), ("done",), ("inner.at",)))


async def test_what_was_erased_is_in_no_file(tmp_path: Path) -> None:
    """Of a document that is removed to be erased nothing is found on the disk, soon after; of others it may be."""
    documents = SqliteDocuments(tmp_path / "d.sqlite")
    await documents.open([PARTS])
    secret = [Part(id=f"p{n}", created_at=START, state=f"ERIKA-{n}") for n in range(300)]
    await documents.cas([Write(PARTS, each.id, 0, each) for each in secret])
    await documents.cas([Write(PARTS, each.id, 1, None, erase=True) for each in secret])

    def found() -> list[str]:
        return [path.name for path in tmp_path.iterdir() if b"ERIKA" in path.read_bytes()]

    async with asyncio.timeout(30):
        while await asyncio.to_thread(found):
            await asyncio.sleep(0.05)
    kept = Part(id="other", created_at=START)
    await documents.cas([Write(PARTS, "other", 0, kept)])
    assert await documents.get(PARTS, "other") == kept
    await documents.close()


#: One with every field, one with the least.
EVENTS = [
    Event(id="evt_2", subject="a.b.c", source="test", at=START, traceparent="00-1-2-00", body='{"a": "ä"}'),
    Event(id="evt_1", subject="a.b.c", source="test", at=START, body="{}"),
]


def part(**fields: object) -> Part:
    return Part(id="p1", created_at=START).but(**fields)


@pytest.fixture
async def asked() -> Recorder:
    """Every query of the services."""
    return await recorded()


@pytest.fixture(scope="module")
def tables() -> Iterator[sqlite3.Connection]:
    """The tables of all services, empty."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    make_tables(connection, COLLECTIONS)
    yield connection
    connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a database may be."""
    return tmp_path / "documents.sqlite"


def plan(connection: sqlite3.Connection, text: str, values: tuple[object, ...]) -> str:
    return "\n".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", values))


def sorts_few(collection: Collection[Any], query: Query) -> bool:
    """Tell whether these are documents of several states that there are few of: what is live, what is owed."""
    several = {(collection.name, where.field) for where in query.where if where.op == "in"}
    return bool(several & {("jobs", "state"), ("jobs", "owes"), ("placements", "state")})


async def test_every_query_of_the_services_uses_an_index(asked: Recorder, tables: sqlite3.Connection) -> None:
    """No query reads a whole table, to find or to count; none sorts what may be long."""
    for collection, query in asked.finds:
        sql = find_sql(collection, query)
        shown = plan(tables, sql.text, sql.values)
        assert " INDEX " in shown, (collection, query)
        assert "TEMP B-TREE" not in shown or sorts_few(collection, query), (collection, query)
    for collection, where, field, by in asked.totals_asked:
        sql = totals_sql(collection, where, field, by)
        assert " INDEX " in plan(tables, sql.text, sql.values), (collection, where)


async def test_a_later_page_costs_what_the_first_one_does(asked: Recorder, tables: sqlite3.Connection) -> None:
    """A query that goes on after an item starts at that item within the index."""
    later = [(collection, find_sql(collection, query)) for collection, query in asked.finds if query.after]
    assert later
    for collection, sql in later:
        shown = plan(tables, sql.text, sql.values)
        assert "(?,?)" in shown or "$.path>?" in shown, (collection, sql, shown)


values = st.fixed_dictionaries(
    {
        "state": st.sampled_from(["new", "old", "ä'\""]),
        "size": st.integers(0, 2),
        "done": st.booleans(),
        "inner": st.none() | st.integers(0, 2).map(lambda n: Inner(at=START + timedelta(n))),
    }
)


@settings(max_examples=50)
@given(st.lists(values, min_size=1, max_size=8))
def test_columns_are_what_the_bodies_say(history: list[dict[str, object]]) -> None:
    """After any changes each column holds the value that its document has now."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    make_tables(connection, [PARTS])
    for revision, fields in enumerate(history, start=1):
        document = part(revision=revision, **fields)
        write = Write(PARTS, "p1", revision - 1, document)
        assert commit(connection, [Batch([(write, document.model_dump_json())], None)]) == [[None]]
        for field in indexed(PARTS):
            sql = f"SELECT {column(field)} IS {extracted(field)} FROM parts"  # noqa: S608
            assert connection.execute(sql).fetchall() == [(1,)], field
    connection.close()


def test_a_change_writes_only_its_own_columns(path: Path) -> None:
    """A change of one field names that field's column and no other, so the other indexes are not touched."""
    connection = sqlite3.connect(path, isolation_level=None)
    make_tables(connection, [PARTS])
    statements: list[str] = []
    for revision, document in enumerate((part(), part(size=7), part(size=7)), start=1):
        write = Write(PARTS, "p1", revision - 1, document.but(revision=revision))
        connection.set_trace_callback(statements.append)
        commit(connection, [Batch([(write, write.document.model_dump_json() if write.document else None)], None)])
    connection.close()
    first, second = [each.split("body =")[1] for each in statements if each.startswith("UPDATE")]
    assert [field for field in indexed(PARTS) if column(field) in first] == ["size"]
    assert not [field for field in indexed(PARTS) if column(field) in second]


def old_file(path: Path) -> None:
    """Write one document as the first version did: indexes over expressions, no columns."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(
        "CREATE TABLE parts (id TEXT PRIMARY KEY, revision INTEGER NOT NULL, keys TEXT NOT NULL, body TEXT NOT NULL)"
        " WITHOUT ROWID"
    )
    connection.execute("CREATE INDEX \"parts:size\" ON parts (json_extract(body, '$.size'), id)")
    old = part(size=3)
    connection.execute("INSERT INTO parts VALUES (?, 1, ?, ?)", (old.id, json.dumps([]), old.model_dump_json()))
    connection.execute(
        "CREATE TABLE outbox (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, "
        "collection TEXT NOT NULL, at REAL NOT NULL, event TEXT NOT NULL, UNIQUE (collection, id))"
    )
    for event in EVENTS:
        connection.execute(
            "INSERT INTO outbox (id, collection, at, event) VALUES (?, 'parts', 1.0, ?)",
            (event.id, event.model_dump_json()),
        )
    connection.close()


async def test_a_file_of_the_first_version_is_brought_up_to_date(path: Path) -> None:
    """Documents without columns get them when the file is opened, and are found by them; its events are kept."""
    old_file(path)
    for _ in range(2):
        documents = SqliteDocuments(path)
        await documents.open([PARTS])
        assert await documents.find(PARTS, Query((Where("size", "=", 3),))) == [part(size=3)]
        assert await documents.unpublished(PARTS, 0) == EVENTS
        await documents.close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM sqlite_schema WHERE tbl_name = 'parts:before'").fetchone() == (0,)
    assert "parts:size" in plan(connection, "SELECT id FROM parts WHERE [$.size] = ?", (3,))
    connection.close()


async def test_a_collection_may_get_and_lose_indexes(path: Path) -> None:
    """Documents are found by a field that is indexed only since now, and after it no longer is."""
    fewer = Collection("parts", Part, (("size",),))
    for size, collection in enumerate((fewer, PARTS, fewer)):
        documents = SqliteDocuments(path)
        await documents.open([collection])
        before = part(size=size - 1, state=f"{size - 1}", revision=size) if size else None
        assert await documents.find(collection, Query((Where("state", "=", f"{size - 1}"),))) == (
            [before] if before else []
        )
        after = part(size=size, state=f"{size}", revision=size + 1)
        assert await documents.cas([Write(collection, "p1", size, after)]) == [None]
        await documents.close()


async def test_a_file_that_is_no_database_says_so(path: Path) -> None:
    """Something else in the file's place is one clear line."""
    path.write_text("no database" * 100)
    documents = SqliteDocuments(path)
    with pytest.raises(StoreUnavailable, match=r"cannot open the documents in .*not a database"):
        await documents.open([PARTS])
    await documents.close()


async def test_what_cannot_be_written_stops_no_other_write(tmp_path: Path) -> None:
    """A write that the database cannot even take in is told to its writer; the thread of all writes goes on."""
    documents = SqliteDocuments(tmp_path / "documents.sqlite")
    await documents.open([PARTS])
    try:
        async with asyncio.timeout(20):
            (fault,) = await documents.cas([Write(PARTS, "\ud800", 1, None)])  # no character, so no text
            assert isinstance(fault, StoreUnavailable)
            assert await documents.cas([Write(PARTS, "p1", 0, part())]) == [None]
    finally:
        await documents.close()
