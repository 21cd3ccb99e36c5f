"""Carries files of a run home: begin, put, commit, in batches; each until it works or patience is over."""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gurney.bus import Bus
from gurney.errors import Conflict, Forbidden, GurneyError, StoreUnavailable
from gurney.model.payload import (
    BeginUploads,
    BegunUpload,
    CommitUploads,
    SignedUpload,
    SignUpload,
    Uploaded,
    WantedParts,
)
from gurney.objects.port import Digest
from gurney.subjects import PAYLOAD_BEGIN, PAYLOAD_COMMIT, PAYLOAD_URLS
from gurney.tasks import spread
from gurney.transfer import put_file
from services.agent.effects import Counts
from services.agent.patience import persist

#: Files in one message.
BATCH = 256
#: Files that one run moves at once.
WIDTH = 4
#: While one batch is put the next is begun, and the one before committed.
_BATCHES_AT_ONCE = 2
#: What an empty folder has instead of an object.
_NOTHING = Digest(0, hashlib.sha256().hexdigest())

#: Path in the payload -> the file that holds it; None: an empty folder.
Sources = Mapping[str, Path | None]


@dataclass(frozen=True)
class Uploader:
    """Stores what one run leaves."""

    bus: Bus
    token: str
    #: Bounds the transfers of the whole agent.
    lanes: asyncio.Semaphore
    patience_s: float

    async def store(self, owner: str, sources: Sources, counts: Counts) -> list[Uploaded]:
        """Store and commit all for `results` or `log`; returns what was stored; raises `GaveUp`."""
        paths = list(sources)
        stored: list[Uploaded] = []

        async def one(batch: Sources) -> None:
            stored.extend(await _Batch(self, owner, batch, counts).store())

        batches = [{path: sources[path] for path in paths[at : at + BATCH]} for at in range(0, len(paths), BATCH)]
        await spread(one, batches, _BATCHES_AT_ONCE)
        return stored


class _Batch:
    def __init__(self, uploader: Uploader, owner: str, sources: Sources, counts: Counts) -> None:
        self._up = uploader
        self._owner = owner
        #: The owner's id, which the commit names.
        self._owner_id = ""
        self._sources = sources
        self._counts = counts
        self._begun: dict[str, BegunUpload] = {}
        self._stored: dict[str, Uploaded] = {}
        self._faults: list[GurneyError | OSError] = []

    async def store(self) -> list[Uploaded]:
        await persist(self._put_all, self._up.patience_s)
        # Said again with the same keys where the answer was lost, a commit changes nothing more.
        await persist(self._commit, self._up.patience_s)
        return list(self._stored.values())

    async def _put_all(self) -> None:
        """Put what is not put yet; an upload whose URL is no longer good is begun anew."""
        self._faults.clear()
        new = tuple(path for path in self._sources if path not in self._begun)
        if new:
            question = BeginUploads(token=self._up.token, owner=self._owner, paths=new)
            answer = await self._up.bus.request(PAYLOAD_BEGIN, question)
            self._owner_id = answer.owner
            self._begun |= zip(new, answer.items, strict=True)
        await spread(self._put, [path for path in self._sources if path not in self._stored], WIDTH)
        if self._faults:
            raise self._faults[0]

    async def _put(self, path: str) -> None:
        begun = self._begun[path]
        try:
            async with self._up.lanes:
                digest = await self._put_one(self._sources[path], begun)
        except (Forbidden, Conflict) as error:  # its time is over, or the answer to an earlier put was lost
            del self._begun[path]
            self._faults.append(StoreUnavailable(f"the URL of an upload was refused: {error}"))
        except (GurneyError, OSError) as error:
            self._faults.append(error)
        else:
            self._stored[path] = Uploaded(path=begun.path, key=begun.key, size=digest.size, sha256=digest.sha256)
            self._counts.done += 1

    async def _commit(self) -> None:
        items = tuple(self._stored.values())
        question = CommitUploads(token=self._up.token, owner=self._owner_id, items=items)
        await self._up.bus.request(PAYLOAD_COMMIT, question)

    async def _put_one(self, source: Path | None, begun: BegunUpload) -> Digest:
        async def ask(parts: WantedParts | None = None) -> SignedUpload:
            who, owner = self._up.token, self._owner_id
            question = SignUpload(token=who, owner=owner, path=begun.path, key=begun.key, parts=parts)
            return await self._up.bus.request(PAYLOAD_URLS, question)

        return _NOTHING if source is None else await put_file(source, begun.url, ask)
