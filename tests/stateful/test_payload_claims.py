"""The payload service under crashes: clients, jobs and runs act, any write may be the last, the sweep makes it good.

The documents are real SQLite behind a wrapper that ends a life of the service after so many writes; objects are a
dictionary that does the same. After a crash the service starts anew on what is left, and the sweep runs.
"""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from gurney.bus import Bus
from gurney.documents.port import Write
from gurney.documents.sqlite import SqliteDocuments
from gurney.errors import Conflict, GurneyError, Invalid, NotFound, PayloadInUse
from gurney.ids import new_id
from gurney.model.base import Idempotency
from gurney.model.common import Ref
from gurney.model.job import JobRefs, JobsAlive
from gurney.model.payload import (
    AbandonUploads,
    BeginUploads,
    ClaimInput,
    CommitUploads,
    CreatePayload,
    DropJob,
    EndPayloads,
    FinalizeInput,
    Payload,
    PayloadCreate,
    PayloadState,
    RemoveFile,
    SignedUpload,
    Uploaded,
    WantedParts,
)
from gurney.objects.port import ObjectInfo
from gurney.outbox import Outbox
from gurney.settings import Settings
from gurney.store import Store
from services.payload import policy
from services.payload.desk import Desk, furnish
from services.payload.handlers import PayloadHandlers
from services.payload.handlers_claims import ClaimHandlers
from services.payload.handlers_files import FileHandlers
from services.payload.repository import CLAIMS, COLLECTIONS, FILES, PAYLOADS
from services.payload.sweep import Sweep
from tests.payload_builders import ANN, SECRET, Jobs, Time, token_of, uploaded

pytestmark = pytest.mark.timeout(900)

T = TypeVar("T")

CRASH = st.sampled_from([None, 0, 1, 2, 3, 4, 6, 9])
PATHS = st.sampled_from(["a", "b", "a/c", "d/"])


class Crash(BaseException):
    """The process is gone: nothing behind this point runs."""


class Fuse:
    """Burns down by one with each write; none is made after its end."""

    def __init__(self) -> None:
        self.left: int | None = None

    def burn(self) -> None:
        if self.left is None:
            return
        if self.left == 0:
            raise Crash
        self.left -= 1


class Mortal(SqliteDocuments):
    """SQLite whose user may die between any two writes, those of one batch included."""

    fuse = Fuse()

    async def cas(self, writes: Sequence[Write]) -> list[GurneyError | None]:
        results: list[GurneyError | None] = []
        for write in writes:
            self.fuse.burn()
            results += await super().cas([write])
        return results


class Shelf:
    """Objects in memory: sizes by key."""

    def __init__(self, fuse: Fuse, time: Time) -> None:
        self.sizes: dict[str, int] = {}
        self._fuse = fuse
        self._time = time

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def sign_put(self, key: str) -> str:
        return key

    def sign_get(self, key: str, saved_as: str | None = None) -> str:
        return f"{key}?{saved_as}"

    async def sign_upload(self, key: str, parts: WantedParts | None = None) -> SignedUpload:
        raise Conflict(f"no parts of {key}: {parts}")

    async def stat(self, key: str) -> ObjectInfo | None:
        return ObjectInfo(key, self.sizes[key], self._time()) if key in self.sizes else None

    async def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._fuse.burn()
            self.sizes.pop(key, None)

    async def give_up(self, keys: Iterable[str]) -> None:
        await self.delete(keys)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        for key in [key for key in self.sizes if key.startswith(prefix)]:
            yield ObjectInfo(key, self.sizes[key], self._time())

    async def sweep(self, older_than_s: float) -> int:
        return int(older_than_s < 0)


@dataclass
class Known:
    """What the outside was told of a payload."""

    keep: bool
    files: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    result_of: str | None = None

    @property
    def held(self) -> bool:
        return "holding" in self.inputs.values()

    @property
    def claimed(self) -> bool:
        return bool(self.inputs or self.result_of)


@dataclass
class Life:
    """One life of the service."""

    desk: Desk
    payloads: PayloadHandlers
    files: FileHandlers
    claims: ClaimHandlers
    sweep: Sweep


@dataclass(frozen=True)
class Put:
    """An upload whose bytes are there."""

    payload: str
    item: Uploaded


@dataclass(frozen=True)
class Job:
    id: str
    payload: str


class Payloads(RuleBasedStateMachine):
    """Clients make, fill and delete payloads; jobs claim them, run, end, are finalized and deleted."""

    uploads = Bundle("uploads")
    live = Bundle("live")
    ended = Bundle("ended")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp())
        self.documents = Mortal(self.folder / "documents.sqlite", sync="normal")
        self.fuse = self.documents.fuse = Fuse()
        self.time, self.jobs = Time(), Jobs()
        self.objects = Shelf(self.fuse, self.time)
        self.runner.run(self.documents.open(COLLECTIONS))
        self.known: dict[str, Known] = {}
        self.size = 0
        self.hours = 0
        self.life = self.born()

    def born(self) -> Life:
        bus = Bus(Settings(), "payload")
        store = Store(self.documents, Outbox(bus, self.documents, COLLECTIONS))

        async def alive(jobs: Sequence[str]) -> JobsAlive:
            return await self.jobs.alive(JobRefs(jobs=tuple(jobs)))

        desk = furnish(store, self.objects, secret=SECRET, alive=alive, now=self.time)
        desk.quiet.PATIENCE_S = 0.0
        sweep = Sweep(desk, timedelta(hours=1), alone=False)
        return Life(desk, PayloadHandlers(desk), FileHandlers(desk), ClaimHandlers(desk), sweep)

    # --- acting ---

    def act(self, crash: int | None, do: Callable[[Life], Coroutine[Any, Any, T]]) -> tuple[T | None, bool]:
        """Do something, with a crash after so many writes; then the service lives again. Tells whether it was done."""

        async def whole() -> T:
            result = await do(self.life)
            await self.empty()
            if self.fuse.left == 0:  # everything was written, and nobody is told
                raise Crash
            return result

        self.fuse.left = crash
        try:
            return self.runner.run(whole()), True
        except Crash:
            self.recover(crash)
            return None, False
        finally:
            self.fuse.left = None

    def recover(self, crash: int | None) -> None:
        """Start anew; the first sweep dies, too, the second does not."""
        for left in (crash, None):
            self.life = self.born()
            self.fuse.left = left
            with suppress(Crash):
                self.runner.run(self.swept())

    async def swept(self) -> None:
        self.time.pass_(hours=2)
        self.hours += 2
        await self.life.sweep.run()
        await self.empty()

    async def empty(self) -> None:
        """Let go of what is doomed, as the service's task does."""
        doomed = self.life.desk.deletion._doomed
        while not doomed.empty():
            await self.life.desk.deletion.finish(doomed.get_nowait())

    def again(self, crash: int | None, do: Callable[[Life], Awaitable[T]]) -> T:
        """Do what the job service repeats until it is answered."""

        async def call(life: Life) -> T:
            return await do(life)

        result, done = self.act(crash, call)
        if not done:
            result, done = self.act(None, call)
        assert done
        return result  # type: ignore[return-value]

    # --- clients ---

    def some(self, number: int) -> str | None:
        return sorted(self.known)[number % len(self.known)] if self.known else None

    @rule(keep=st.booleans())
    def create(self, keep: bool) -> None:  # noqa: FBT001
        made, _ = self.act(
            None, lambda life: life.payloads.create(PayloadCreate(caller=ANN, body=CreatePayload(keep=keep)))
        )
        assert made
        self.known[made.id] = Known(keep)

    @rule(files=st.integers(0, 2), key=st.sampled_from("kl"), keep=st.booleans(), crash=CRASH)
    def unpack(self, files: int, key: str, keep: bool, crash: int | None) -> None:  # noqa: FBT001
        """Send an archive until an answer comes: it is a payload with every file, or the one of that key."""
        sent = {f"{n}": n + 1 for n in range(files)}

        async def send(life: Life) -> Payload:
            asked = PayloadCreate(
                id=new_id("pay"),
                caller=ANN,
                body=CreatePayload(keep=keep),
                idempotency=Idempotency(key=key, digest=""),
                filling=True,
            )
            made = await life.payloads.create(asked)
            return made if made.id != asked.id else await self.filled(life, made.id, sent)

        made = self.again(crash, send)
        if made.id not in self.known:
            self.known[made.id] = Known(keep, sent)
        assert made.files == len([path for path in self.known[made.id].files if not path.endswith("/")])

    async def filled(self, life: Life, payload: str, files: dict[str, int]) -> Payload:
        for path, size in files.items():
            begun = await life.files.begin(BeginUploads(caller=ANN, owner=payload, paths=(path,)))
            key = begun.items[0].key
            self.objects.sizes[key] = size
            item = uploaded(path, key, b"x" * size)
            await life.files.commit(CommitUploads(caller=ANN, owner=payload, items=(item,)))
        return await life.payloads.open(Ref(caller=ANN, ref=payload))

    @rule(target=uploads, number=st.integers(0, 9), path=PATHS, crash=CRASH)
    def begin(self, number: int, path: str, crash: int | None) -> Any:
        payload = self.some(number)
        if payload is None:
            return multiple()
        try:
            begun, done = self.act(
                crash, lambda life: life.files.begin(BeginUploads(caller=ANN, owner=payload, paths=(path,)))
            )
        except Invalid:  # it would be a file and a folder
            assert any(policy.clash(path, [other]) for other in self.known[payload].files)
            return multiple()
        except PayloadInUse:
            assert self.known[payload].held
            return multiple()
        if begun is None or not done:
            return multiple()
        key = begun.items[0].key
        self.size += 1
        content = b"" if path.endswith("/") else b"x" * self.size
        if content:
            self.objects.sizes[key] = len(content)
        return Put(payload, uploaded(path, key, content))

    @rule(put=consumes(uploads), crash=CRASH)
    def commit(self, put: Put, crash: int | None) -> None:
        known, item = self.known.get(put.payload), put.item
        try:
            _, done = self.act(
                crash,
                lambda life: life.files.commit(CommitUploads(caller=ANN, owner=put.payload, items=(item,))),
            )
        except NotFound:
            assert known is None
            self.abandon(put, None)
            assert item.key not in self.objects.sizes
        except Invalid:
            assert known
            assert any(policy.clash(item.path, [other]) for other in known.files)
        except PayloadInUse:
            assert known
            assert known.held
        except Conflict:
            assert self.hours  # only time makes an upload stale
        else:
            assert known
            assert not known.held or not done
            if done or self.sizes(put.payload).get(item.path) == item.size:
                known.files[item.path] = item.size

    @rule(put=consumes(uploads), crash=CRASH)
    def give_up(self, put: Put, crash: int | None) -> None:
        self.abandon(put, crash)

    def abandon(self, put: Put, crash: int | None) -> None:
        items = ((put.item.path, put.item.key),)
        self.act(crash, lambda life: life.files.abandon(AbandonUploads(caller=ANN, owner=put.payload, items=items)))

    @rule(number=st.integers(0, 9), path=PATHS, crash=CRASH)
    def remove(self, number: int, path: str, crash: int | None) -> None:
        payload = self.some(number)
        if payload is None:
            return
        known = self.known[payload]
        try:
            asked = RemoveFile(caller=ANN, payload=payload, path=path)
            _, done = self.act(crash, lambda life: life.files.remove(asked))
        except PayloadInUse:
            assert known.held
        except NotFound:
            assert path not in known.files
        else:
            assert not known.held or not done
            if done or path not in self.sizes(payload):
                known.files.pop(path, None)

    @rule(number=st.integers(0, 9), crash=CRASH)
    def delete(self, number: int, crash: int | None) -> None:
        payload = self.some(number)
        if payload is None:
            return
        try:
            _, done = self.act(crash, lambda life: life.payloads.delete(Ref(caller=ANN, ref=payload)))
        except PayloadInUse:
            assert self.known[payload].held
            return
        assert not self.known[payload].held or not done
        if done or not self.exists(payload):
            assert not self.known[payload].held
            del self.known[payload]

    # --- jobs ---

    @rule(target=live, number=st.integers(0, 9), crash=CRASH)
    def submit(self, number: int, crash: int | None) -> Any:
        payload = self.some(number)
        if payload is None:
            return multiple()
        job = Job(new_id("job"), payload)
        claimed, done = self.act(
            crash, lambda life: life.claims.claim(ClaimInput(caller=ANN, payload=payload, job=job.id))
        )
        if not done:  # the create was given up: this job never comes
            return multiple()
        assert claimed
        assert claimed.id == payload
        known = self.known[payload]
        self.jobs.live.add(job.id)
        known.inputs[job.id] = "holding"
        return job

    @rule(job=live, attempt=st.integers(1, 2), crash=CRASH)
    def run_writes(self, job: Job, attempt: int, crash: int | None) -> None:
        token = token_of(job.id, job.payload, attempt)

        async def write(life: Life) -> None:
            for owner, path in (("results", "r"), ("log", f"{attempt}.log")):
                begun = await life.files.begin(BeginUploads(token=token, owner=owner, paths=(path,)))
                key = begun.items[0].key
                self.objects.sizes[key] = 1
                item = uploaded(path, key, b"x")
                await life.files.commit(CommitUploads(token=token, owner=begun.owner, items=(item,)))

        self.again(crash, write)

    @rule(target=ended, job=consumes(live), run=st.sampled_from([None, 1, 2]), crash=CRASH)
    def end(self, job: Job, run: int | None, crash: int | None) -> Job:
        question = EndPayloads(
            job=job.id, payload=job.payload, run=run and f"{job.id}-{run}", project="default", created_by="ann"
        )
        results = self.again(crash, lambda life: life.claims.end(question))
        self.jobs.live.remove(job.id)
        self.jobs.ended.add(job.id)
        assert (results.results is None) == (run is None)
        self.known[job.payload].inputs[job.id] = "keeping"
        if results.results:
            files = self.sizes(results.results)
            assert files in ({}, {"r": 1})
            assert results.files == len(files)
            self.known[results.results] = Known(keep=False, files=files, result_of=job.id)
        return job

    @rule(job=ended, crash=CRASH)
    def finalize(self, job: Job, crash: int | None) -> None:
        question = FinalizeInput(job=job.id, payload=job.payload)
        self.again(crash, lambda life: life.claims.finalize(question))
        known = self.known.get(job.payload)
        if known:
            known.inputs.pop(job.id, None)
            if not known.claimed and not known.keep:
                del self.known[job.payload]

    @rule(job=consumes(ended), crash=CRASH)
    def drop(self, job: Job, crash: int | None) -> None:
        self.again(crash, lambda life: life.claims.drop(DropJob(job=job.id)))
        self.jobs.ended.remove(job.id)
        for payload, known in list(self.known.items()):
            known.inputs.pop(job.id, None)
            if known.result_of == job.id:
                known.result_of = None
                if not known.claimed and not known.keep:
                    del self.known[payload]

    @rule()
    def sweep(self) -> None:
        """Hours pass in which nothing happens."""
        self.act(None, lambda _: self.swept())

    # --- what is true ---

    def sizes(self, payload: str) -> dict[str, int]:
        """Return the visible files of a payload, each with the bytes that its URL gives."""
        files = self.runner.run(self.life.desk.repository.some_files(payload))
        visible = [file for file in files if file.content]
        for file in visible:
            assert file.content
            assert file.folder or self.objects.sizes[file.content.key] == file.content.size
        return {file.path: file.content.size for file in visible if file.content}

    def exists(self, payload: str) -> bool:
        try:
            self.runner.run(self.life.payloads.get(Ref(ref=payload)))
        except NotFound:
            return False
        return True

    @invariant()
    def nothing_is_lost_or_altered(self) -> None:
        """Every known payload has exactly the files that it was told to have, and no other payload is open."""
        found = self.runner.run(self.life.desk.store.find(PAYLOADS))
        shown = {each.id for each in found if each.state is PayloadState.OPEN and not each.doomed}
        assert shown == set(self.known)
        for payload, known in self.known.items():
            assert self.sizes(payload) == known.files

    @invariant()
    def claims_are_what_was_told(self) -> None:
        """Payloads are held and kept by whom they should be."""
        claims = self.runner.run(self.life.desk.store.find(CLAIMS))
        known = {
            (payload, job, state) for payload, each in self.known.items() for job, state in each.inputs.items()
        } | {(payload, each.result_of, "keeping") for payload, each in self.known.items() if each.result_of}
        assert known <= {(claim.payload, claim.job, claim.state) for claim in claims}

    def teardown(self) -> None:
        """In the end, with every job over, nothing is stored that nobody can reach."""
        try:
            self.jobs.ended |= self.jobs.live
            self.jobs.live.clear()
            for _ in range(2):
                self.runner.run(self.swept())
            files = self.runner.run(self.life.desk.store.find(FILES, sort=("id",)))
            assert not [file for file in files if file.unsettled or not file.content]
            assert set(self.objects.sizes) == {file.content.key for file in files if file.content and not file.folder}
            payloads = self.runner.run(self.life.desk.store.find(PAYLOADS))
            assert {payload.id for payload in payloads} == set(self.known)
            owners = {file.owner for file in files}
            assert owners <= set(self.known) | self.jobs.ended
            claims = self.runner.run(self.life.desk.store.find(CLAIMS))
            assert {claim.job for claim in claims} <= self.jobs.ended
        finally:
            self.runner.run(self.documents.close())
            self.runner.close()
            shutil.rmtree(self.folder)


Payloads.TestCase.settings = settings(
    stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


TestPayloads = Payloads.TestCase
