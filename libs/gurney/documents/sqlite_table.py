"""The tables: one per collection (id, revision, keys, a column per indexed field, body), `keys`, `outbox`.

Tables have a rowid: with it a body of 4 KB stays within the page of its row, without it only one of 1 KB does.
A column is written only when its value changes: SQLite leaves alone the indexes of the others.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from gurney.documents.port import Collection
from gurney.documents.sqlite_query import column, extracted, indexed

_KEYS = """
CREATE TABLE IF NOT EXISTS keys (
    collection TEXT NOT NULL, key TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (collection, key)
) WITHOUT ROWID
"""

#: Name, type, and what it is made of where the file has the table with other columns.
Column = tuple[str, str, str]

_OUTBOX: list[Column] = [
    ("seq", "INTEGER PRIMARY KEY", "seq"),
    ("collection", "TEXT NOT NULL", "collection"),
    ("written", "REAL NOT NULL", "at"),
    ("id", "TEXT NOT NULL", "id"),
    *((name, "TEXT", extracted(name, "event")) for name in ("subject", "source", "at", "traceparent", "body")),
]


@dataclass(frozen=True)
class Table:
    """The statements that write one collection; their values are named id, revision, keys and body."""

    name: str
    fields: tuple[str, ...]
    #: The row's revision, its keys, and for each column whether this body changes it.
    look: str
    insert: str
    remove: str
    _updates: dict[tuple[int, ...], str] = field(default_factory=dict)

    def update(self, changes: tuple[int, ...]) -> str:
        """Return the statement that writes revision, keys, body and the changed columns."""
        if changes not in self._updates:
            changed = [each for each, change in zip(self.fields, changes, strict=True) if change]
            columns = "".join(f", {column(each)} = {extracted(each, ':body')}" for each in changed)
            self._updates[changes] = (
                f'UPDATE "{self.name}" SET revision = :revision, keys = :keys, body = :body{columns} WHERE id = :id'  # noqa: S608
            )
        return self._updates[changes]


@cache
def table_of(collection: Collection[Any]) -> Table:
    name, fields = collection.name, indexed(collection)
    changes = "".join(f", {column(each)} IS NOT {extracted(each, ':body')}" for each in fields)
    values = "".join(f", {extracted(each, ':body')}" for each in fields)
    return Table(
        name,
        fields,
        look=f'SELECT revision, keys{changes} FROM "{name}" WHERE id = :id',  # noqa: S608
        insert=f'INSERT INTO "{name}" VALUES (:id, :revision, :keys{values}, :body)',  # noqa: S608
        remove=f'DELETE FROM "{name}" WHERE id = :id',  # noqa: S608
    )


def make_tables(connection: sqlite3.Connection, collections: Iterable[Collection[Any]]) -> None:
    """Make what is missing, in one transaction; a table with other columns is written anew."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(_KEYS)
        _make(connection, "outbox", _OUTBOX)
        connection.execute("CREATE UNIQUE INDEX IF NOT EXISTS outbox_ids ON outbox (collection, id)")
        for collection in collections:
            name = collection.name
            _make(connection, name, _columns(collection))
            for index in collection.indexes:
                fields = ", ".join([*map(column, index), "id"])
                connection.execute(f'CREATE INDEX IF NOT EXISTS "{name}:{",".join(index)}" ON "{name}" ({fields})')


def _columns(collection: Collection[Any]) -> list[Column]:
    return [
        ("id", "TEXT NOT NULL PRIMARY KEY", "id"),
        ("revision", "INTEGER NOT NULL", "revision"),
        ("keys", "TEXT NOT NULL", "keys"),
        *((column(each), "", extracted(each)) for each in indexed(collection)),
        ("body", "TEXT NOT NULL", "body"),
    ]


def _make(connection: sqlite3.Connection, name: str, columns: Sequence[Column]) -> None:
    there = [row[1] for row in connection.execute(f'PRAGMA table_info("{name}")')]
    anew = bool(there) and there != [column_name.strip("[]") for column_name, _, _ in columns]
    if anew:
        connection.execute(f'ALTER TABLE "{name}" RENAME TO "{name}:before"')
    definitions = ", ".join(f"{column_name} {type_}" for column_name, type_, _ in columns)
    connection.execute(f'CREATE TABLE IF NOT EXISTS "{name}" ({definitions})')
    if anew:
        sources = ", ".join(source for _, _, source in columns)
        connection.execute(f'INSERT INTO "{name}" SELECT {sources} FROM "{name}:before" ORDER BY 1')  # noqa: S608
        connection.execute(f'DROP TABLE "{name}:before"')
