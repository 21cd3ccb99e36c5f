"""The stack, killed: every `gurney serve` at once, while nats-server, MongoDB, MinIO and the runs live on.

What its documents and its object store may not still hold when all is over is the same whatever was killed.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from gurney.documents.mongo import MongoDocuments
from gurney.documents.port import Collection, Documents, Query, Where
from gurney.model.payload import Claim
from gurney.objects.choice import objects_of
from gurney.objects.port import Objects
from gurney.settings import Settings
from gurney.testing.stack import Stack
from services.job.repository import JOBS
from services.map.repository import MAPS
from services.notifier.repository import DELIVERIES
from services.payload.repository import CLAIMS, FILES, PAYLOADS
from services.scheduler.repository import PLACEMENTS
from tests.e2e import work
from tests.e2e.kill_checks import Faults, leftovers
from tests.e2e.kill_server import Mortal, kill, supervisors

#: Rounds come often, and what the dead held is soon free.
ENVIRONMENT = {
    "GURNEY_RECONCILE_INTERVAL": "2",
    "GURNEY_CPU": "2",
    "GURNEY_STOP_GRACE": "1",
    "GURNEY_LEADER_TERM": "3",
    "GURNEY_UPLOAD_TIMEOUT": "30",
}

OWNED: tuple[Collection[Any], ...] = (JOBS, MAPS, PLACEMENTS, PAYLOADS, FILES, CLAIMS, DELIVERIES)

#: What no document may still have to do when all is over.
OWED: dict[str, tuple[Collection[Any], Where]] = {
    "payload that should be gone": (PAYLOADS, Where("state", "!=", "open")),
    "file with something to do": (FILES, Where("unsettled", "!=", None)),
    "claim of an ended job": (CLAIMS, Where("state", "=", "holding")),
    "job not marked as told": (JOBS, Where("notified", "=", False)),  # noqa: FBT003
    "delivery under way": (DELIVERIES, Where("state", "!=", "delivered")),
}
#: What the shell that starts a process says of its end.
_OF_THE_SHELL = ("Killed", "Terminated")
#: More than a test makes.
_ALL = 1_000_000


class MortalStack(Mortal):
    """The topology of a site on this machine."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.stack = stack
        self._documents: MongoDocuments | None = None

    @property
    def hosts(self) -> list[Path]:
        return self.stack.hosts

    @property
    def logs(self) -> str:
        return "\n".join(line for line in self.stack.logs.splitlines() if line not in _OF_THE_SHELL)

    @property
    def nats(self) -> dict[str, Any]:
        password = (self.stack.data / "secrets" / "nats_operator").read_text().strip()
        return {"servers": self.stack.nats.url, "user": "operator", "password": password}

    def strike(self) -> None:
        self.up.clear()
        kill(process.pid for process in self.stack.processes.values() if process.runs)

    async def wipe(self) -> None:
        await asyncio.to_thread(self.stack.nats.kill)
        await asyncio.to_thread(self.stack.nats.wipe)
        await asyncio.to_thread(self.stack.nats.start)

    async def jobs(self) -> list[tuple[str, str, str | None]]:
        documents = await self._opened()
        states = {each.id: each.state for each in await documents.find(PLACEMENTS, Query(sort=("id",), limit=_ALL))}
        return [
            (job.id, job.state, states.get(f"{job.id}-{job.attempt}"))
            for job in await documents.find(JOBS, Query(limit=_ALL))
        ]

    async def unsettled(self) -> Faults:
        return await unsettled(self.stack)

    async def twice(self) -> Faults:
        watching = {host: await asyncio.to_thread(supervisors, host) for host in self.hosts}
        return [f"{len(pids)} supervisors of {host}: {pids}" for host, pids in watching.items() if len(pids) > 1]

    async def left(self) -> Faults:
        return [
            f"supervisor {pid} is left" for host in self.hosts for pid in await asyncio.to_thread(supervisors, host)
        ]

    async def finish(self) -> None:
        await super().finish()
        if self._documents:
            await self._documents.close()
        await asyncio.to_thread(self.stack.stop)

    def _start(self) -> tuple[str, str]:
        if not self.stack.processes:
            self.stack.start()
        else:
            for process in self.stack.processes.values():
                process.begin()
            for process in self.stack.processes.values():
                process.wait()
        return self.stack.url, self.stack.token

    def _kill(self) -> None:
        for process in self.stack.processes.values():
            with suppress(RuntimeError, ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self._stop()

    def _stop(self) -> int:
        with ThreadPoolExecutor() as pool:
            return max(pool.map(lambda process: process.stop(), self.stack.processes.values()), default=0)

    async def _opened(self) -> Documents:
        if self._documents is None:
            self._documents = MongoDocuments(self.stack.mongo.url, "gurney")
            await self._documents.open(OWNED)
        return self._documents


async def unsettled(stack: Stack) -> Faults:
    """Return what documents still have to do, objects that no document names, and what runs left on the hosts."""
    documents = MongoDocuments(stack.mongo.url, "gurney")
    objects = objects_of(Settings(**stack.minio.settings()))
    try:
        await documents.open(OWNED)
        await objects.open()
        found = [line async for line in _owed(documents)] + [line async for line in _astray(documents, objects)]
    finally:
        await objects.close()
        await documents.close()
    return found + await asyncio.to_thread(lambda: list(_left(stack.hosts)))


async def _owed(documents: Documents) -> AsyncIterator[str]:
    for what, (collection, where) in OWED.items():
        for document in await documents.find(collection, Query((where,), sort=("id",))):
            # The claim of a job that never came to be is dropped after an hour.
            if not isinstance(document, Claim) or await documents.get(JOBS, document.job):
                yield f"{what}: {document}"
    for collection in OWNED:
        for event in await documents.unpublished(collection, 0):
            yield f"event not published: {event}"


async def _astray(documents: Documents, objects: Objects) -> AsyncIterator[str]:
    files = await documents.find(FILES, Query(sort=("id",), limit=_ALL))
    named = {file.content.key: file.content.size for file in files if file.content}
    found = {info.key: info.size async for info in objects.list()}
    for key in found.keys() - named.keys():
        yield f"object that no document names: {key}"
    for key, size in named.items():
        if found.get(key) != size:
            yield f"object of {found.get(key)} bytes instead of {size}: {key}"


def _left(hosts: Iterable[Path]) -> Iterable[str]:
    for host in hosts:
        yield from leftovers(host)
        yield from (str(path) for path in work.leftovers(host, "job_") if path.is_relative_to(host) or _on(host, path))


def _on(host: Path, process: Path) -> bool:
    """Tell whether a process of a run is one of this host's: its environment names its folders."""
    with suppress(OSError):
        return str(host).encode() in (process / "environ").read_bytes()
    return False
