"""What the service does beside answering: events, bytes and payloads that go, and waking who waits for a change."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from gurney import clock, telemetry
from gurney.documents.port import Collection, D, Write
from gurney.errors import Conflict, GurneyError, RevisionConflict, Unavailable
from gurney.ids import new_id
from gurney.model.event import Event, event_of
from gurney.model.payload import Claim, File, Payload, PayloadEvent, PayloadState
from gurney.objects.port import Objects
from gurney.store import Store
from gurney.subjects import PAYLOAD_EVENT
from services.payload import file_machine, machine, policy
from services.payload.repository import CLAIMS, FILES, PAYLOADS, Repository

#: What a change makes of a file: itself to leave it, None to remove its document.
Decide = Callable[[File], File | None]
#: Events that go with a change (before, after).
Tell = Callable[[File, File | None], tuple[Event, ...]]
#: What was written: (before, after).
Changes = list[tuple[File, File | None]]

_log = telemetry.log("payload")


def payload_event(event: str, payload: Payload, now: datetime, path: str | None = None) -> Event:
    """Return `payload.<event>`."""
    data = PayloadEvent(
        id=payload.id,
        project=payload.project,
        created_by=payload.created_by,
        name=payload.name,
        job=payload.job,
        at=now,
        path=path,
    )
    subject = PAYLOAD_EVENT.of(event=event, payload_id=payload.id)
    return event_of(subject, data, id=new_id("evt"), source="payload", at=now, traceparent=telemetry.traceparent())


def conflicted(writes: Sequence[Write], faults: Sequence[GurneyError | None]) -> list[str]:
    """Return the ids of writes for which somebody was quicker; raises any other fault."""
    for fault in faults:
        if fault is not None and not isinstance(fault, RevisionConflict):
            raise fault
    return [write.id for write, fault in zip(writes, faults, strict=True) if fault]


def _silent(_: File, __: File | None) -> tuple[Event, ...]:
    return ()


class Bell:
    """Wakes, within this process, who waits until no file of a payload is changing."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    def ring(self, owner: str) -> None:
        for event in self._waiting.pop(owner, ()):
            event.set()

    async def wait(self, owner: str, within: float) -> None:
        """Return when the bell rings, or after `within` seconds: another process rings no bell here."""
        event = asyncio.Event()
        self._waiting.setdefault(owner, set()).add(event)
        try:
            async with asyncio.timeout(within):
                await event.wait()
        except TimeoutError:
            waiting = self._waiting.get(owner, set())
            waiting.discard(event)
            if not waiting:
                self._waiting.pop(owner, None)


class Files:
    """Changes of files, in batches, and the removal of bytes that nobody can reach any more."""

    def __init__(self, store: Store, repository: Repository, objects: Objects) -> None:
        self._store = store
        self._repository = repository
        self._objects = objects

    async def begin(self, files: Iterable[File]) -> list[File]:
        """Store fresh files, each with one upload, or add it to what is known; returns what is stored then."""
        fresh = {file.id: file for file in files}
        todo, known, begun = set(fresh), dict[str, File](), dict[str, File]()
        while todo:
            begun |= {id_: _begun(fresh[id_], known.get(id_)) for id_ in todo}
            writes = [Write(FILES, id_, begun[id_].revision - 1, begun[id_]) for id_ in todo]
            todo = set(conflicted(writes, await self._store.write(*writes)))
            known = await self._repository.files_by_id(list(todo)) if todo else {}
        return list(begun.values())

    async def change(
        self, ids: Iterable[str], decide: Decide, tell: Tell = _silent, *, missing_ok: bool = False
    ) -> Changes:
        """Decide on each file and write what was decided, again where somebody was quicker.

        What `decide` raises in the first round leaves every file as it was.
        """
        todo, done = set(ids), Changes()
        while todo:
            files = await self._repository.files_by_id(list(todo))
            if not missing_ok and len(files) < len(todo):
                raise Conflict("a file went away while it was being changed")
            changes = {id_: (file, decide(file)) for id_, file in files.items()}
            writes = [
                Write(FILES, id_, before.revision, after, tell(before, after))
                for id_, (before, after) in changes.items()
                if after is not before
            ]
            todo = set(conflicted(writes, await self._store.write(*writes))) if writes else set()
            done += [change for id_, change in changes.items() if id_ not in todo]
        return done

    async def clean(self, changes: Changes) -> None:
        """Delete the bytes of what became garbage, then forget it. A crash in between is the sweep's."""
        keys = {key for _, after in changes if after for key in after.garbage}
        if keys:
            stored = keys & {before.content.key for before, _ in changes if before.content}
            await self._objects.delete(stored)
            await self._objects.give_up(keys - stored)
            ids = [after.id for _, after in changes if after and after.garbage]
            await self.change(ids, lambda file: file_machine.forget(file, keys), missing_ok=True)

    async def clear(self, owner: str, *, erase: bool = False) -> None:
        """Remove everything that an owner has, bytes first; `erase`: also from the files of the database."""
        while files := await self._repository.some_files(owner):
            await self._objects.delete([key for file in files for key in file_machine.content_keys(file)])
            await self._objects.give_up([key for file in files for key in file_machine.unwanted_keys(file)])
            writes = [Write(FILES, file.id, file.revision, None, erase=erase) for file in files]
            conflicted(writes, await self._store.write(*writes))


def _begun(fresh: File, known: File | None) -> File:
    return file_machine.begin(known, fresh.pending[0]) if known else fresh


class Deletion:
    """Lets payloads go: marked, doomed, then emptied by `run`, one after another."""

    def __init__(self, store: Store, repository: Repository, files: Files, now: Callable[[], datetime]) -> None:
        self._store = store
        self._repository = repository
        self._files = files
        self._now = now
        self._doomed: asyncio.Queue[str] = asyncio.Queue()
        #: What is in the queue: each sweep brings the same again, for as long as the store is away.
        self._queued: set[str] = set()

    async def delete(self, payload_id: str, *, unclaimed: bool = False) -> None:
        """Delete an open payload; raises `PayloadInUse` where jobs hold it. `unclaimed`: any claim keeps it, too."""
        while True:
            payload = await self._update(payload_id, lambda payload: machine.mark_deleting(payload, self._now()))
            holding = await self._repository.holding(payload_id)
            if holding or (unclaimed and await self._repository.claimed(payload_id)):
                await self._update(payload_id, lambda payload: machine.undo_deleting(payload, self._now()))
                policy.refuse_held(payload_id, holding)
                return
            if (await self.doom(payload)).doomed:
                return

    async def decide_again(self, payload: Payload) -> None:
        """Finish a deletion that a crash left undecided: it goes on, or a job was quicker."""
        if await self._repository.holding(payload.id):
            await self._update(payload.id, lambda payload: machine.undo_deleting(payload, self._now()))
        else:
            await self.doom(payload)

    async def doom(self, payload: Payload) -> Payload:
        """Make it final that this payload goes, and let it go soon."""
        after = await self._update(payload.id, machine.doom)
        if after.doomed:
            self.soon(payload.id)
        return after

    def soon(self, payload_id: str) -> None:
        """Empty and remove this doomed payload."""
        if payload_id not in self._queued:
            self._queued.add(payload_id)
            self._doomed.put_nowait(payload_id)

    async def run(self) -> None:
        """Empty and remove what is doomed, for ever. What fails is left to the sweep."""
        while True:
            payload_id = await self._doomed.get()
            self._queued.discard(payload_id)
            try:
                await self.finish(payload_id)
            except Exception as error:
                _log.warning("payload goes later", payload=payload_id, error=error)

    async def finish(self, payload_id: str) -> None:
        """Remove the files of a doomed payload, then the payload, with its event; drafts go unsaid, as they came."""
        payload = await self._repository.payload(payload_id)
        if payload is None or not payload.doomed:
            return
        await self._files.clear(payload_id, erase=payload.transient)
        told = payload.state is PayloadState.DELETING
        events = (payload_event("deleted", payload, self._now()),) if told else ()
        write = Write(PAYLOADS, payload_id, payload.revision, None, events)
        if conflicted([write], await self._store.write(write)):
            self.soon(payload_id)

    async def finish_transient(self, payload: Payload) -> None:
        """Empty and remove a payload now, where who asks relies on it that nothing stays."""
        if payload.transient:
            await self.finish(payload.id)

    async def _update(self, payload_id: str, change: Callable[[Payload], Payload]) -> Payload:
        return await update(self._store, PAYLOADS, payload_id, change)


async def update(store: Store, collection: Collection[D], id_: str, change: Callable[[D], D]) -> D:
    """Change a document by compare-and-set; a change that returns its argument writes nothing."""

    def changed(document: D) -> tuple[D, Sequence[Event]] | None:
        after = change(document)
        return None if after is document else (after, ())

    return await store.update(collection, id_, changed)


async def drop_claims(store: Store, claims: Iterable[Claim]) -> None:
    """Remove claims, whatever became of them meanwhile."""
    todo = list(claims)
    while todo:
        writes = [Write(CLAIMS, claim.id, claim.revision, None) for claim in todo]
        lost = conflicted(writes, await store.write(*writes))
        todo = await store.documents.get_many(CLAIMS, lost) if lost else []


class Quiet:
    """Waits until no file of a payload is changing; marks of those who were stopped end here."""

    #: Seconds after which somebody in another process is believed to be stuck.
    PATIENCE_S = 3.0
    #: Seconds between two looks: changes in other processes ring no bell here.
    LOOK_S = 0.05

    def __init__(self, repository: Repository, files: Files, bell: Bell, now: Callable[[], datetime]) -> None:
        self._repository = repository
        self._files = files
        self._bell = bell
        self._now = now

    async def wait(self, owner: str) -> None:
        """Return when nothing is changing; raises `Unavailable` where that lasts too long."""
        deadline = clock.monotonic() + self.PATIENCE_S
        while changing := await self._repository.changing(owner):
            if clock.monotonic() > deadline:
                raise Unavailable(f"files of {owner} are being changed", retry_after_s=1)
            await self._end_dead(changing)
            await self._bell.wait(owner, self.LOOK_S)

    async def _end_dead(self, changing: Sequence[File]) -> None:
        dead = self._now() - file_machine.MARK_LASTS
        ids = [file.id for file in changing if file.changing and file.changing.at < dead]
        if ids:
            await self._files.change(ids, lambda file: file_machine.unmark_before(file, dead), missing_ok=True)
