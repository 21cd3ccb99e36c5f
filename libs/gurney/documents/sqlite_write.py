"""The writer: one thread that takes all that waits into one transaction and answers after COMMIT."""

import asyncio
import json
import queue
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gurney import clock, telemetry
from gurney.documents.port import Write
from gurney.documents.sqlite_table import table_of
from gurney.errors import GurneyError, KeyTaken, RevisionConflict, StoreUnavailable
from gurney.model.event import Event

BATCH = 512
#: Seconds after which what was to be erased is in no file of the database any more.
ERASED_WITHIN_S = 1.0
#: Milliseconds for which that waits for those who read.
ERASE_WAITS_MS = 100

_log = telemetry.log("documents")


@dataclass(slots=True)
class Batch:
    """Writes of one caller, each with its document as JSON, and who waits for them."""

    writes: list[tuple[Write, str | None]]
    #: Belongs to the loop: the writer only hands it back.
    answered: "asyncio.Future[list[GurneyError | None]] | None"
    #: Collection and id of events to take out of the outbox.
    settled: Sequence[tuple[str, str]] = ()


Answer = tuple[Batch, list[GurneyError | None]]


def write_loop(
    connection: sqlite3.Connection,
    inbox: "queue.SimpleQueue[Batch | None]",
    answer: Callable[[Sequence[Answer]], None],
) -> None:
    """Write until None comes. `answer` is called once for all that a transaction wrote: it wakes a busy loop."""
    erase_at: float | None = None
    while True:
        if erase_at is not None and clock.monotonic() >= erase_at:
            erase_at = None if _erase(connection) else clock.monotonic() + ERASED_WITHIN_S
        try:
            first = inbox.get(timeout=None if erase_at is None else max(0.001, erase_at - clock.monotonic()))
        except queue.Empty:
            continue
        if first is None:
            return
        batches = [first]
        while len(batches) < BATCH and not inbox.empty():
            following = inbox.get()
            if following is None:
                inbox.put(None)
                break
            batches.append(following)
        try:
            results = commit(connection, batches)
        except Exception as error:  # whatever it is, who waits is told, and the thread goes on: all writes are its own
            if not isinstance(error, sqlite3.Error):
                _log.exception("documents cannot be written")
            fault = StoreUnavailable(f"cannot write the documents: {error}")
            results = [[fault] * len(batch.writes) for batch in batches]
        answer([*zip(batches, results, strict=True)])
        if erase_at is None and any(write.erase for batch in batches for write, _ in batch.writes):
            erase_at = clock.monotonic() + ERASED_WITHIN_S


def _erase(connection: sqlite3.Connection) -> bool:
    """Empty the write-ahead log, which has what pages held before; tells whether no reader was in the way."""
    try:
        connection.execute(f"PRAGMA busy_timeout={ERASE_WAITS_MS}")
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        connection.execute("PRAGMA busy_timeout=10000")
    except sqlite3.Error as error:
        _log.warning("removed documents are not erased yet", error=error)
        return False
    return not busy


_KEEP = """
INSERT OR IGNORE INTO outbox (collection, written, id, subject, source, at, traceparent, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""


def commit(connection: sqlite3.Connection, batches: Sequence[Batch]) -> list[list[GurneyError | None]]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        events: list[tuple[str, Event]] = []
        results = [[_apply(connection, write, body, events) for write, body in batch.writes] for batch in batches]
        if events:
            connection.executemany(_KEEP, _kept(events))
        settled = [each for batch in batches for each in batch.settled]
        if settled:
            connection.executemany("DELETE FROM outbox WHERE collection = ? AND id = ?", settled)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return results


def _apply(
    connection: sqlite3.Connection, write: Write, body: str | None, events: list[tuple[str, Event]]
) -> GurneyError | None:
    """Do one write within the open transaction and leave its events to be written, or say why not."""
    name, table = write.collection.name, table_of(write.collection)
    values: dict[str, Any] = {"id": write.id, "body": body}
    row = connection.execute(table.look, values).fetchone()
    found, before, *changes = row or (0, "[]")
    if found != write.expected:
        return RevisionConflict(f"{name} {write.id} is at revision {found}, not {write.expected}")
    keys = sorted(write.document.unique_keys()) if write.document else []
    after = json.dumps(keys) if keys else "[]"
    if after != before and (taken := _exchange(connection, write, set(json.loads(before)), set(keys))):
        return taken
    if write.document is None:
        connection.execute(table.remove, values)
    else:
        values |= {"revision": write.document.revision, "keys": after}
        connection.execute(table.update(tuple(changes)) if row else table.insert, values)
    events.extend((name, event) for event in write.events)
    return None


def _exchange(connection: sqlite3.Connection, write: Write, before: set[str], after: set[str]) -> KeyTaken | None:
    """Let go of keys and take others, or say which is taken and change nothing."""
    name = write.collection.name
    for key in after - before:
        holder = connection.execute("SELECT id FROM keys WHERE collection = ? AND key = ?", (name, key)).fetchone()
        if holder:
            return KeyTaken(key, holder[0])
    connection.executemany("DELETE FROM keys WHERE collection = ? AND key = ?", [(name, key) for key in before - after])
    connection.executemany("INSERT INTO keys VALUES (?, ?, ?)", [(name, key, write.id) for key in after - before])
    return None


def _kept(events: Sequence[tuple[str, Event]]) -> list[tuple[Any, ...]]:
    written = clock.now().timestamp()
    return [
        (collection, written, each.id, each.subject, each.source, clock.rfc3339(each.at), each.traceparent, each.body)
        for collection, each in events
    ]
