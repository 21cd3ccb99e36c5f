"""Carries files of a run home: begin, put, commit, in batches; each until it works or patience is over."""

import asyncio
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

from gurney.bus import Bus
from gurney.errors import Conflict, Forbidden, GurneyError, StoreUnavailable
from gurney.model.payload import BeginUploads, BegunUpload, CommitUploads, Uploaded
from gurney.objects.port import Digest
from gurney.subjects import PAYLOAD_BEGIN, PAYLOAD_COMMIT
from gurney.transfer import open_put, put_file
from services.agent.effects import Counts
from services.agent.patience import persist, spread

#: Files in one message.
BATCH = 256
#: Files that one run moves at once.
WIDTH = 4
_BATCHES_AT_ONCE = 2

#: Path in the payload -> the file that holds it; None: an empty folder.
Sources = Mapping[str, Path | None]


class Upload:
    """Files of one run for one owner: `results` or `log`."""

    def __init__(self, bus: Bus, token: str, owner: str, *, lanes: asyncio.Semaphore, patience_s: float) -> None:
        self._bus = bus
        self._token = token
        self._owner = owner
        self._lanes = lanes
        self._patience_s = patience_s

    async def store(self, sources: Sources, counts: Counts) -> list[Uploaded]:
        """Store and commit all; returns what was stored; raises `GaveUp`."""
        stored: list[Uploaded] = []

        async def one(batch: Sources) -> None:
            stored.extend(await _Batch(self._bus, self._token, self._owner, batch, self._lanes, counts).store(self))

        paths = iter(sources.items())
        batches = iter(lambda: dict(islice(paths, BATCH)), {})
        if len(sources) <= BATCH:
            await one(sources)
        else:
            await _spread_plainly(one, batches)
        return stored

    @property
    def patience_s(self) -> float:
        return self._patience_s
