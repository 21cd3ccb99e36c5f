"""What runs that are over have shown, written down for whoever leads next: projects' pasts, and how long MAPs take.

It decides whose turn it is, and nothing else. So it is written every few seconds and not with each end, and a crash
takes what has been learned since. Placements tell it for minutes only: they go soon after their end.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, Self, TypeVar

from gurney import clock, telemetry
from gurney.documents.port import Collection, Write
from gurney.errors import GurneyError, RevisionConflict
from gurney.model.run import ProjectPast, RunTimes
from services.scheduler import repository
from services.scheduler.office import Office
from services.scheduler.repository import BATCH, PROJECT_PASTS, RUN_TIMES
from services.scheduler.shares import Past

#: Seconds between two looks at what has changed: so much is lost at most.
KEEP_EVERY_S = 5.0

V = TypeVar("V")

_log = telemetry.log("scheduler")


class Book(Generic[V]):
    """One collection: the revision of each document, and the value that it has as far as we know."""

    def __init__(self, collection: Collection[Any], document: Callable[[str, V, int], ProjectPast | RunTimes]) -> None:
        """`document` makes one of its id, its value and its epoch."""
        self.collection = collection
        self._document = document
        self._written: dict[str, tuple[int, V | None]] = {}

    def found(self, id: str, revision: int, value: V | None) -> None:  # noqa: A002
        """Note what is written; revision 0: nothing."""
        if revision:
            self._written[id] = revision, value
        else:
            self._written.pop(id, None)

    def changes(self, known: Mapping[str, V], epoch: int) -> Iterator[tuple[Write, V | None]]:
        """Yield the writes after which what is written is what is known, each with its value."""
        for name, value in known.items():
            revision, before = self._written.get(name, (0, None))
            if before != value:
                document = self._document(name, value, epoch).but(revision=revision + 1)
                yield Write(self.collection, name, revision, document), value
        for name, (revision, _) in self._written.items():
            if name not in known:
                yield Write(self.collection, name, revision, None), None


class History:
    """One per tenure. As a context: inside, what former leaders have learned is known."""

    def __init__(self, office: Office) -> None:
        self._store = office.store
        self._tenure = office.tenure
        self._shares = office.cluster.shares
        self._durations = office.cluster.durations
        self._pasts = Book[Past](PROJECT_PASTS, _past)
        self._times = Book[tuple[float, ...]](RUN_TIMES, _times)

    async def __aenter__(self) -> Self:
        for each in await repository.project_pasts(self._store):
            past = Past(each.value, each.at)
            self._shares.recall(each.id, past)
            self._pasts.found(each.id, each.revision, past)
        for times in await repository.run_times(self._store):
            self._durations.note(times.id, *times.seconds)
            self._times.found(times.id, times.revision, times.seconds)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._tenure.leads:  # else it is another's to write
            await self._try_to_write()

    async def keep(self) -> None:
        """Write what has changed, for ever."""
        while True:
            await asyncio.sleep(KEEP_EVERY_S)
            await self._try_to_write()

    async def _try_to_write(self) -> None:
        try:
            await self.write()
        except GurneyError as error:
            _log.info("what runs have shown is not written", error=error)

    async def write(self) -> None:
        """Write what has changed since the last time; raises `Deposed` where a newer leader has written."""
        await self._follow(self._pasts, self._shares.pasts(clock.now()))
        await self._follow(self._times, self._durations.known)

    async def _follow(self, book: Book[V], known: Mapping[str, V]) -> None:
        changes = list(book.changes(known, self._tenure.epoch))
        for start in range(0, len(changes), BATCH):
            batch = changes[start : start + BATCH]
            faults = await self._store.write(*[write for write, _ in batch])
            for (write, value), fault in zip(batch, faults, strict=True):
                if fault is None:
                    book.found(write.id, write.document.revision if write.document else 0, value)
                elif isinstance(fault, RevisionConflict):
                    await self._look_again(book, write.id)
                else:
                    raise fault

    async def _look_again(self, book: Book[V], id: str) -> None:  # noqa: A002
        """Find what somebody else has written: a former leader, who is overruled next time, or a newer one."""
        found = await self._store.documents.get(book.collection, id)
        if found is not None:
            self._tenure.check_epoch(found.epoch)
        book.found(id, found.revision if found else 0, None)


def _past(project: str, past: Past, epoch: int) -> ProjectPast:
    return ProjectPast(id=project, epoch=epoch, value=past.value, at=past.at)


def _times(digest: str, seconds: tuple[float, ...], epoch: int) -> RunTimes:
    return RunTimes(id=digest, epoch=epoch, seconds=seconds)
