"""SIGKILL and SIGSTOP of any one part of the stack under load: nothing accepted is lost, and nothing runs twice.

`GURNEY_SEED` repeats the choices of a run, `GURNEY_KILLS` says how often each kind of part is killed.
"""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gurney.documents.mongo import MongoDocuments
from gurney.documents.port import Collection, Documents, Query, Where
from gurney.model.payload import Claim
from gurney.testing.stack import REPLICATED, Stack
from services.job.repository import JOBS
from services.map.repository import MAPS
from services.notifier.repository import DELIVERIES
from services.payload.repository import CLAIMS, FILES, PAYLOADS
from services.scheduler.repository import PLACEMENTS
from tests.e2e import kill_checks as checks
from tests.e2e import work
from tests.e2e.kill_load import Listener, Load, make_maps, prepare
from tests.e2e.kill_server import Insistent

SERVERS = ("nats", "mongo", "minio")
#: What befalls a part: its end, its end with the loss of what JetStream stored, a rest.
KINDS = (*REPLICATED, "agent", *SERVERS, "wipe", "pause")
#: Profile -> how often each kind comes.
KILLS = {"quick": 1, "ci": 2, "long": 20}
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


class MortalStack(Insistent):
    """The stack, as clients know it who go on asking while its parts come and go."""

    is_late = True

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.stack = stack
        self.done: Counter[str] = Counter()

    async def befall(self, kind: str, rng: random.Random) -> None:
        """Let one part of a kind die, or rest, for a while."""
        name = self._one_of(kind, rng)
        part = self.stack.parts[name]
        await asyncio.sleep(rng.uniform(0, 0.5))
        if kind == "pause":
            await asyncio.to_thread(part.pause)
            await asyncio.sleep(rng.uniform(0.2, 5))
            part.resume()
        else:
            await asyncio.to_thread(part.kill)
            if kind == "wipe":
                await asyncio.to_thread(self.stack.nats.wipe)
            await asyncio.sleep(rng.choice([0, rng.uniform(0, 2)]))
            await asyncio.to_thread(part.start)
        self.done[kind] += 1

    def _one_of(self, kind: str, rng: random.Random) -> str:
        match kind:
            case "pause":
                return rng.choice(list(self.stack.parts))
            case "wipe":
                return "nats"
        return kind if kind in SERVERS else rng.choice(self.stack.of(kind))

    def table(self) -> str:
        return "\n".join(["     kind times", *(f"{kind:>9} {self.done[kind]:5}" for kind in KINDS)])


@pytest.fixture
def starts(tmp_path: Path) -> Path:
    return tmp_path / "starts"


@pytest.fixture
def stack(tmp_path: Path, starts: Path) -> Iterator[Stack]:
    """A stack of two hosts."""
    (tmp_path / "maps").mkdir()
    with Stack(tmp_path / "data", make_maps(tmp_path / "maps", starts), ENVIRONMENT) as running:
        yield running


@pytest.fixture
async def mortal(stack: Stack) -> AsyncIterator[MortalStack]:
    server = MortalStack(stack)
    server.meet(stack.url, stack.token)
    yield server
    await server.leave()


@pytest.mark.slow
@pytest.mark.needs("mongo", "minio")
@pytest.mark.timeout(3600)
async def test_faults(
    mortal: MortalStack, starts: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever part is killed or rests, accepted jobs run once and end, acknowledged files stay, handlers are told."""
    seed = int(os.environ.get("GURNEY_SEED") or random.SystemRandom().randrange(2**32))
    each = int(os.environ.get("GURNEY_KILLS") or KILLS[request.config.getoption("--profile")])
    with capsys.disabled():
        print(f"\nGURNEY_SEED={seed}, {each} of each kind")
    rng = random.Random(seed)
    load, listener = Load(mortal, seed), Listener()
    began = time.monotonic()
    async with listener.listening() as url:
        await prepare(mortal, listener, url)
        faults = list(KINDS) * each
        rng.shuffle(faults)
        async with load.running():
            for kind in faults:
                await mortal.befall(kind, rng)
        killed = time.monotonic()
        found = await checks.eventually(lambda: checks.stuck(mortal, load))
        found += await checks.eventually(lambda: checks.untold(load, listener))
        found += await checks.jobs_are_right(mortal, load, starts, lossy=False)
        found += await checks.results_are_right(mortal, load)
        found += await checks.files_are_right(mortal, load)
        found += await checks.eventually(lambda: owed(mortal.stack))
        found += checks.told_once(load, listener) + load.faults
    with capsys.disabled():
        print(mortal.table())
        print(f"{len(load.jobs)} jobs, {len(load.files)} files, {listener.times} webhooks")
        print(f"{killed - began:.0f} s of faults, {time.monotonic() - killed:.0f} s until all was over")
    assert not found, "\n".join(found[:50])
    assert [kind for kind in KINDS if not mortal.done[kind]] == []


async def owed(stack: Stack) -> list[str]:
    """Return what documents still have to do, and what runs left on the hosts."""
    documents = MongoDocuments(stack.mongo.url, "gurney")
    try:
        await documents.open(OWNED)
        found = [line async for line in _owed(documents)]
    finally:
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


def _left(hosts: Iterable[Path]) -> Iterable[str]:
    for host in hosts:
        yield from map(str, work.leftovers(host, "job_"))
