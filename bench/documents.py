"""State changes of 64 callers at once: the port `documents` beside the plain driver, each a compare-and-set.

    .venv/bin/python bench/documents.py [--store sqlite mongo] [--rounds 5] [--changes 50]

Each caller has a document of its own, of the size and with the indexes of a small job, and changes its state again and
again; with each change one event is stored. Both sides get the same documents and events, and commit before they
answer, as safely: `full` syncs the disk at each commit, `normal` at checkpoints.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import aiosqlite
import uvloop
from figures import HEAD, ratio, row
from motor.motor_asyncio import AsyncIOMotorClient
from motor_side import Motor

from gurney.clock import now
from gurney.documents.mongo import MongoDocuments
from gurney.documents.port import Collection, Documents, Write
from gurney.documents.sqlite import SqliteDocuments
from gurney.model.base import Dated
from gurney.model.event import Event
from gurney.testing.mongo import MongoServer

CALLERS = 64
STATES = ("requested", "scheduled", "running", "succeeded")
BODY = '{"text": "' + "x" * 800 + '"}'


class Task(Dated):
    """A document of 2 KB."""

    state: str = STATES[0]
    text: str = "x" * 1900


TASKS = Collection("tasks", Task, (("created_at",), ("state", "created_at")))


@dataclass(frozen=True)
class Change:
    before: Task
    after: Task
    event: Event


class Side(Protocol):
    """One that stores changes."""

    async def insert(self, tasks: list[Task]) -> None: ...

    async def change(self, change: Change) -> None:
        """Return when it is stored; raises where the document is at another revision."""


@dataclass
class Pair:
    """The port and what it is compared with, equally safe."""

    name: str
    ours: Side
    theirs: Side


class Port:
    """The port, over any adapter."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    async def insert(self, tasks: list[Task]) -> None:
        assert not any(await self._documents.cas([Write(TASKS, task.id, 0, task) for task in tasks]))

    async def change(self, change: Change) -> None:
        write = Write(TASKS, change.before.id, change.before.revision, change.after, (change.event,))
        assert await self._documents.cas([write]) == [None]


class SettlingPort(Port):
    """The port over a store that keeps events in the document, until they are published and settled."""

    async def change(self, change: Change) -> None:
        await super().change(change)
        await self._documents.settle(TASKS, [change.event.id])


class PlainMotor(Motor):
    async def change(self, change: Change) -> None:
        await self.update(change.before, change.after, change.event)


class Aiosqlite:
    """One connection, as aiosqlite's documentation has it; a lock keeps the transactions of callers apart."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self._lock = asyncio.Lock()

    async def insert(self, tasks: list[Task]) -> None:
        await self._connection.execute("CREATE TABLE tasks (id TEXT PRIMARY KEY, revision, state, created_at, body)")
        await self._connection.execute("CREATE INDEX created ON tasks (created_at, id)")
        await self._connection.execute("CREATE INDEX state ON tasks (state, created_at, id)")
        await self._connection.execute("CREATE TABLE outbox (seq INTEGER PRIMARY KEY, id TEXT UNIQUE, event)")
        rows = [(task.id, 1, task.state, task.created_at.isoformat(), task.model_dump_json()) for task in tasks]
        await self._connection.executemany("INSERT INTO tasks VALUES (?, ?, ?, ?, ?)", rows)
        await self._connection.commit()

    async def change(self, change: Change) -> None:
        after, event = change.after, change.event
        async with self._lock:
            cursor = await self._connection.execute(
                "UPDATE tasks SET revision = ?, state = ?, body = ? WHERE id = ? AND revision = ?",
                (after.revision, after.state, after.model_dump_json(), after.id, change.before.revision),
            )
            assert cursor.rowcount == 1
            await self._connection.execute(
                "INSERT INTO outbox (id, event) VALUES (?, ?)", (event.id, event.model_dump_json())
            )
            await self._connection.commit()


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[list[Pair]]:
    async with AsyncExitStack() as stack:
        yield [await sqlite_pair(folder, sync, stack) for sync in ("full", "normal")]


async def sqlite_pair(folder: Path, sync: Literal["full", "normal"], stack: AsyncExitStack) -> Pair:
    documents = SqliteDocuments(folder / f"{sync}.sqlite", sync=sync)
    await documents.open([TASKS])
    stack.push_async_callback(documents.close)
    connection = await stack.enter_async_context(aiosqlite.connect(folder / f"{sync}-plain.sqlite"))
    await connection.execute("PRAGMA journal_mode=WAL")
    await connection.execute(f"PRAGMA synchronous={sync}")
    return Pair(f"SQLite {sync} to aiosqlite", Port(documents), Aiosqlite(connection))


@asynccontextmanager
async def mongo(folder: Path) -> AsyncIterator[list[Pair]]:
    with MongoServer(folder) as server:
        documents = MongoDocuments(server.url)
        await documents.open([TASKS])
        client: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(server.url)
        yield [Pair("MongoDB j=true to motor", SettlingPort(documents), PlainMotor(client))]
        await documents.close()
        client.close()


#: Opens what a store is compared with.
STORES: dict[str, Callable[[Path], AbstractAsyncContextManager[list[Pair]]]] = {"sqlite": sqlite, "mongo": mongo}


def planned(tasks: list[Task], changes: int) -> list[list[Change]]:
    """Return what each caller does, and leave the documents as they are then."""
    plans = []
    for place, first in enumerate(tasks):
        plan, before = [], first
        for _ in range(changes):
            after = before.next(state=STATES[before.revision % len(STATES)])
            event = f"evt_{after.id}-{after.revision}"
            plan.append(Change(before, after, Event(id=event, subject="x.y", source="bench", at=now(), body=BODY)))
            before = after
        plans.append(plan)
        tasks[place] = before
    return plans


async def rate(side: Side, plans: list[list[Change]]) -> float:
    """Return how many changes a second they all make."""

    async def caller(plan: list[Change]) -> None:
        for change in plan:
            await side.change(change)

    begun = time.perf_counter()
    await asyncio.gather(*(caller(plan) for plan in plans))
    return sum(map(len, plans)) / (time.perf_counter() - begun)


async def compare(pair: Pair, rounds: int, changes: int) -> None:
    """Print the rates and their ratios; the sides take turns, so that both share what the machine does meanwhile."""
    tasks = [Task(id=f"t{number:04}", created_at=now()) for number in range(CALLERS)]
    rates: tuple[list[float], list[float]] = ([], [])
    for side in (pair.ours, pair.theirs):
        await side.insert(tasks)
    for number in range(rounds + 1):
        plans = planned(tasks, changes)
        for side, taken in zip((pair.ours, pair.theirs), rates, strict=True):
            measured = await rate(side, plans)
            if number:  # the first warms up
                taken.append(measured)
    print(row(f"{pair.name}: the port", rates[0], "changes/s"))
    print(row(f"{pair.name}: the driver", rates[1], "changes/s"))
    print(ratio(pair.name, *rates), flush=True)


async def main(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(HEAD)
        for store in options.store:
            async with STORES[store](Path(folder)) as pairs:
                for pair in pairs:
                    await compare(pair, options.rounds, options.changes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", nargs="+", choices=[*STORES], default=[*STORES])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--changes", type=int, default=50)
    uvloop.run(main(parser.parse_args()))
