"""The embedded server, killed: its one process, its nats-server and the supervisor of its runs live on."""

import asyncio
import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gurney.testing.embedded import EmbeddedProcess
from tests.e2e.kill_checks import Faults, leftovers
from tests.e2e.kill_server import ANSWERS_WITHIN_S, Mortal, kill, processes_with, supervisors
from tests.e2e.work import nats_pid


class MortalServer(Mortal):
    """One data folder."""

    def __init__(self, process: EmbeddedProcess) -> None:
        super().__init__()
        self.process = process
        self.data = process.data

    @property
    def hosts(self) -> list[Path]:
        return self.process.hosts

    @property
    def logs(self) -> str:
        return self.process.logs

    @property
    def nats(self) -> dict[str, Any]:
        told = (self.data / "nats" / "nats-server.conf").read_text()
        port, password = re.search(r'listen: "127.0.0.1:(\d+)"', told), re.search(r'password: "([^"]+)"', told)
        assert port, told
        assert password, told
        return {"servers": f"nats://127.0.0.1:{port[1]}", "user": "gurney", "password": password[1]}

    def strike(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.up.clear()

    async def wipe(self) -> None:
        """Remove the JetStream folder, its nats-server with it."""
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(nats_pid(self.data), signal.SIGKILL)
        jetstream = self.data / "nats" / "jetstream"
        async with asyncio.timeout(ANSWERS_WITHIN_S):
            while jetstream.exists():
                await asyncio.to_thread(shutil.rmtree, jetstream, ignore_errors=True)

    async def jobs(self) -> list[tuple[str, str, str | None]]:
        return await asyncio.to_thread(_jobs_of, self.data)

    async def unsettled(self) -> Faults:
        return await unsettled(self.data)

    async def twice(self) -> Faults:
        servers = await asyncio.to_thread(_nats_servers, self.data)
        return [] if len(servers) == 1 else [f"{len(servers)} nats-servers: {servers}"]

    async def left(self) -> Faults:
        return await asyncio.to_thread(
            lambda: [
                *(f"nats-server {pid} is left" for pid in _nats_servers(self.data)),
                *(f"supervisor {pid} is left" for pid in supervisors(self.data)),
                *(f"left: {name}" for name in ("url", "nats/server.json") if (self.data / name).exists()),
            ]
        )

    async def finish(self) -> None:
        await super().finish()
        kill(_nats_servers(self.data))

    def _start(self) -> tuple[str, str]:
        self.process.start()
        return self.process.url, self.process.token

    def _kill(self) -> None:
        self.process.kill()

    def _stop(self) -> int:
        return self.process.stop()


def _nats_servers(data: Path) -> list[int]:
    """Return the nats-servers of a data folder."""
    return processes_with(str(data / "nats" / "nats-server.conf"))


def _jobs_of(data: Path) -> list[tuple[str, str, str | None]]:
    database = sqlite3.connect(f"file:{data / 'documents.sqlite'}?mode=ro", uri=True, timeout=30)
    try:
        return database.execute(
            "SELECT jobs.id, jobs.body ->> 'state', placements.body ->> 'state' FROM jobs "
            "LEFT JOIN placements ON placements.id = jobs.id || '-' || (jobs.body ->> 'attempt')"
        ).fetchall()
    finally:
        database.close()


async def unsettled(data: Path) -> Faults:
    """Return what the documents still have to do, and what lies about beside them."""
    return await asyncio.to_thread(_unsettled, data)


def _unsettled(data: Path) -> Faults:
    database = sqlite3.connect(f"file:{data / 'documents.sqlite'}?mode=ro", uri=True, timeout=30)
    try:
        return [*_documents(database), *_objects(database, data / "objects"), *leftovers(data)]
    finally:
        database.close()


def _documents(database: sqlite3.Connection) -> Iterable[str]:
    questions = {
        "event not published": "SELECT id || ' ' || subject FROM outbox",
        "payload that should be gone": "SELECT body FROM payloads WHERE body ->> 'state' != 'open'",
        "file with something to do": "SELECT body FROM files WHERE body ->> 'unsettled' IS NOT NULL",
        "claim of an ended job": "SELECT body FROM claims WHERE body ->> 'state' = 'holding'",
        "job not marked as told": "SELECT body FROM jobs WHERE NOT (body ->> 'notified')",
        "delivery under way": "SELECT body FROM deliveries WHERE body ->> 'state' != 'delivered'",
    }
    for what, question in questions.items():
        for (row,) in database.execute(question):
            yield f"{what}: {row}"


def _objects(database: sqlite3.Connection, objects: Path) -> Iterable[str]:
    named = {}
    for (body,) in database.execute("SELECT body FROM files"):
        content = json.loads(body)["content"]
        if content:
            named[content["key"]] = content
    found = {f"{path.parent.name}/{path.name}": path for path in (objects / "objects").glob("*/*/*")}
    yield from (f"object that no document names: {key}" for key in found.keys() - named.keys())
    yield from (f"object that is gone: {key}" for key in named.keys() - found.keys())
    for key in found.keys() & named.keys():
        data = found[key].read_bytes()
        if (len(data), hashlib.sha256(data).hexdigest()) != (named[key]["size"], named[key]["sha256"]):
            yield f"object that is not what its document says: {key}"
    yield from (f"empty folder {path}" for path in (objects / "objects").glob("*/*") if not any(path.iterdir()))
