"""The payload service over a real nats-server, real SQLite, and objects in a real folder and a real MinIO."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gurney import subjects as s
from gurney.documents.sqlite import SqliteDocuments
from gurney.errors import (
    Conflict,
    Forbidden,
    IdempotencyKeyReused,
    IntegrityError,
    Invalid,
    JobTerminal,
    NameTaken,
    NotFound,
    PayloadInUse,
    RevisionConflict,
    Unavailable,
)
from gurney.ids import new_id
from gurney.model.access import Caller, Role
from gurney.model.base import Idempotency
from gurney.model.common import Ref, Rename
from gurney.model.payload import (
    AbandonUploads,
    BeginUploads,
    CreatePayload,
    DropJob,
    FileList,
    FinalizeInput,
    LogRef,
    Mark,
    Payload,
    PayloadCreate,
    PayloadEvent,
    PayloadList,
    PayloadState,
    ReleaseClaim,
    RemoveFile,
    RestoreClaims,
    SignFiles,
    SignUpload,
    Uploaded,
)
from gurney.objects.choice import objects_of
from gurney.objects.port import Objects
from gurney.service import Parts, Service
from gurney.settings import Settings
from gurney.testing.nats import NatsServer
from gurney.testing.s3 import a_bucket
from gurney.transfer import open_get, open_put
from services.payload.__main__ import build
from services.payload.effects import Changes, Deletion, Quiet
from services.payload.handlers_files import FileHandlers
from services.payload.policy import file_id
from services.payload.repository import CLAIMS, FILES, PAYLOADS, Repository
from tests.payload_builders import ANN, SECRET, Asker, Jobs, Time, token_of, until

BOB = Caller(token="tok_b", subject="bob", role=Role.CLINICIAN)

pytestmark = pytest.mark.timeout(60)


@dataclass
class House(Asker):
    """The service under test and what it stands on."""

    service: Service
    objects: Objects
    documents: SqliteDocuments
    jobs: Jobs
    time: Time

    async def sweep(self) -> None:
        """Run one round of the sweep, then wait until what it doomed is gone."""
        reconcile = self.service._parts.reconcile
        assert reconcile
        await reconcile()
        await self.emptied()

    async def emptied(self) -> None:
        """Return when nothing is doomed any more."""

        async def none_doomed() -> bool:
            return not any(payload.doomed for payload in await self.service.store.find(PAYLOADS))

        await until(none_doomed)

    async def keys(self, prefix: str = "") -> set[str]:
        return {info.key async for info in self.objects.list(prefix)}

    async def events(self) -> list[tuple[str, PayloadEvent]]:
        """Return what EVENTS holds, once every event is published."""

        async def published() -> bool:
            return not any([await self.documents.unpublished(each, 0) for each in (PAYLOADS, FILES, CLAIMS)])

        await until(published)
        js = self.bus.js
        state = (await js.stream_info("EVENTS")).state
        messages = [await js.get_msg("EVENTS", seq) for seq in range(1, state.last_seq + 1)]
        return [(str(m.subject).split(".")[1], PayloadEvent.decode(m.data or b"")) for m in messages]


@pytest.fixture(
    params=["folder", pytest.param("minio", marks=[pytest.mark.needs("minio"), pytest.mark.slow])],
)
async def house(request: pytest.FixtureRequest, nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[House]:
    """The payload service, and the job service that it asks."""
    where = {} if request.param == "folder" else request.getfixturevalue("minio_server").settings(a_bucket())
    settings = Settings(
        nats_url=nats_server.url,
        data=tmp_path,
        run_secret=SECRET,
        reconcile_interval=3600,
        upload_timeout=3600,
        **where,
    )
    documents = SqliteDocuments(tmp_path / "documents.sqlite", sync="normal")
    objects, jobs, time = objects_of(settings), Jobs(), Time()
    job = Service("job", settings).does(Parts(answers={s.JOB_ALIVE: jobs.alive}))
    service = build(settings, documents=documents, objects=objects, now=time)
    edge = Service("edge", settings)
    async with job, service, edge:
        yield House(edge.bus, service, objects, documents, jobs, time)
    await documents.close()


async def read(house: House, payload: str, path: str) -> bytes:
    signed = await house.ask(s.PAYLOAD_SIGN, SignFiles(caller=ANN, payload=payload, paths=(path,)))
    async with open_get(signed.items[0].url) as get:
        return b"".join([chunk async for chunk in get])


# --- payloads -----------------------------------------------------------------------------------------------------


async def test_a_payload_is_found_by_id_and_by_name(house: House) -> None:
    """What was created is read by id and by name, with counts of zero."""
    made = await house.create("scans")
    by_name = await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref="scans"))
    assert by_name == await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref=made.id))
    assert (by_name.files, by_name.bytes, by_name.claims, by_name.held_by) == (0, 0, 0, ())
    assert [name for name, _ in await house.events()] == ["created"]


@pytest.mark.parametrize("ref", ["pay_01k0000000000000000000000", "nothing", "pay_", "a/b", ""])
async def test_unknown_references_are_not_found(house: House, ref: str) -> None:
    """Whatever the reference looks like, what is not there is not found."""
    with pytest.raises(NotFound):
        await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref=ref))


async def test_a_name_is_listed_however_its_characters_are_made_up(house: House) -> None:
    """The filter `name` finds a payload by its name in NFD, too."""
    made = await house.create("Sch\u00e4del")
    page = await house.ask(s.PAYLOAD_LIST, PayloadList(caller=ANN, name="Scha\u0308del"))
    assert [each.id for each in page.items] == [made.id]


async def test_a_name_is_unique_until_it_is_free(house: House) -> None:
    """A taken name is refused; renaming and deleting free it."""
    first = await house.create("scans")
    with pytest.raises(NameTaken):
        await house.create("scans")
    await house.ask(s.PAYLOAD_RENAME, Rename(caller=ANN, ref=first.id, name="older"))
    second = await house.create("scans")
    with pytest.raises(NameTaken):
        await house.ask(s.PAYLOAD_RENAME, Rename(caller=ANN, ref=first.id, name="scans"))
    await house.ask(s.PAYLOAD_DELETE, Ref(caller=ANN, ref=second.id))
    assert (await house.create("scans")).id != second.id


async def test_a_repeated_request_gets_the_first_payload(house: House) -> None:
    """The same idempotency key with the same body answers the first payload as it is now; another body is refused."""
    body = CreatePayload(name="scans")
    asked = PayloadCreate(caller=ANN, body=body, idempotency=Idempotency(key="k", digest="d"))
    first = await house.ask(s.PAYLOAD_CREATE, asked)
    await house.ask(s.PAYLOAD_RENAME, Rename(caller=ANN, ref=first.id, name="renamed"))
    again = await house.ask(s.PAYLOAD_CREATE, asked)
    assert (again.id, again.name) == (first.id, "renamed")
    other = asked.but(idempotency=Idempotency(key="k", digest="other"))
    with pytest.raises(IdempotencyKeyReused):
        await house.ask(s.PAYLOAD_CREATE, other)


async def test_of_two_same_requests_at_once_both_get_one_payload(house: House) -> None:
    """Name and key of the loser are the winner's: that is told as a repetition, never as a taken name."""
    asked = PayloadCreate(caller=ANN, body=CreatePayload(name="scans"), idempotency=Idempotency(key="k", digest="d"))
    made = await asyncio.gather(*(house.ask(s.PAYLOAD_CREATE, asked) for _ in range(8)))
    assert len({payload.id for payload in made}) == 1


async def test_others_do_not_see_a_payload(house: House) -> None:
    """What a clinician did not make is not there for him, in no operation and no list."""
    made = await house.create()
    with pytest.raises(NotFound):
        await house.ask(s.PAYLOAD_GET, Ref(caller=BOB, ref=made.id))
    with pytest.raises(NotFound):
        await house.ask(s.PAYLOAD_DELETE, Ref(caller=BOB, ref=made.id))
    with pytest.raises(NotFound):
        await house.upload(made.id, {"a": b""}, caller=BOB)
    with pytest.raises(NotFound):
        await house.claim(made.id, new_id("job"), caller=BOB)
    assert (await house.ask(s.PAYLOAD_LIST, PayloadList(caller=BOB))).items == ()


async def test_lists_come_newest_first_with_counts(house: House) -> None:
    """A list shows open payloads, newest first, each with its own files, bytes, claims and holders."""
    made = [await house.create() for _ in range(3)]
    await house.upload(made[0].id, {"a": b"123", "b/c": b"4567", "empty/": b""})
    job = new_id("job")
    await house.claim(made[1].id, job)
    page = await house.ask(s.PAYLOAD_LIST, PayloadList(caller=ANN))
    assert [each.id for each in page.items] == [each.id for each in reversed(made)]
    counts = {each.id: (each.files, each.bytes, each.claims, each.held_by) for each in page.items}
    assert counts == {made[0].id: (2, 7, 0, ()), made[1].id: (0, 0, 1, (job,)), made[2].id: (0, 0, 0, ())}


async def test_deleting_is_not_a_state_to_ask_for(house: House) -> None:
    """A list of payloads that are being deleted is refused: nobody sees them."""
    with pytest.raises(Invalid) as refused:
        await house.ask(s.PAYLOAD_LIST, PayloadList(caller=ANN, state=PayloadState.DELETING))
    assert refused.value.errors[0].field == "state"


# --- files --------------------------------------------------------------------------------------------------------


async def test_what_was_uploaded_is_read_back(house: House) -> None:
    """A committed file is listed and its URL gives its bytes; `changed` names its path."""
    made = await house.create()
    done = await house.upload(made.id, {"ct/1.dcm": b"one"})
    assert (done.items[0].size, done.replaced) == (3, ())
    assert await house.paths(made.id) == ["ct/1.dcm"]
    assert await read(house, made.id, "ct/1.dcm") == b"one"
    after = await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref=made.id))
    assert (after.files, after.bytes) == (1, 3)
    assert after.updated_at > made.updated_at
    assert [(name, event.path) for name, event in await house.events()] == [("created", None), ("changed", "ct/1.dcm")]


async def test_a_replaced_file_leaves_no_old_bytes(house: House) -> None:
    """A second upload of a path replaces the first and says so; the old object is gone."""
    made = await house.create()
    await house.upload(made.id, {"a": b"old"})
    old = await house.keys()
    done = await house.upload(made.id, {"a": b"newer"})
    assert done.replaced == ("a",)
    assert await read(house, made.id, "a") == b"newer"
    assert len(await house.keys()) == 1
    assert not old & await house.keys()


async def test_a_removed_file_is_gone(house: House) -> None:
    """A removed file is neither listed nor stored; removing it again finds nothing."""
    made = await house.create()
    await house.upload(made.id, {"a": b"1", "b": b"2"})
    gone = RemoveFile(caller=ANN, payload=made.id, path="a")
    await house.ask(s.PAYLOAD_REMOVE, gone)
    assert await house.paths(made.id) == ["b"]
    assert len(await house.keys()) == 1
    with pytest.raises(NotFound):
        await house.ask(s.PAYLOAD_REMOVE, gone)
    assert (await house.events())[-1][1].path == "a"


async def test_an_uncommitted_upload_is_not_seen_and_an_abandoned_one_leaves_nothing(house: House) -> None:
    """Until its commit a file does not exist; abandoned, neither document nor object is left."""
    made = await house.create()
    (item,) = await house.put(made.id, {"a": b"1"})
    assert await house.paths(made.id) == []
    await house.ask(s.PAYLOAD_ABANDON, AbandonUploads(caller=ANN, owner=made.id, items=((item.path, item.key),)))
    assert await house.keys() == set()
    assert await house.documents.get(FILES, file_id(made.id, "a")) is None
    with pytest.raises(Conflict):
        await house.commit(made.id, (item,))


async def test_abandoning_cannot_touch_what_is_committed(house: House) -> None:
    """Neither a late abandon of a committed upload nor one under another path removes a byte."""
    made = await house.create()
    (item,) = await house.put(made.id, {"a": b"1"})
    await house.commit(made.id, (item,))
    for path in ("a", "b"):
        await house.ask(s.PAYLOAD_ABANDON, AbandonUploads(caller=ANN, owner=made.id, items=((path, item.key),)))
    assert await read(house, made.id, "a") == b"1"


async def test_an_upload_into_a_payload_that_went_can_still_be_given_up(house: House) -> None:
    """Bytes that arrive after their payload was deleted go when their mover abandons them."""
    made = await house.create()
    begun = await house.ask(s.PAYLOAD_BEGIN, BeginUploads(caller=ANN, owner=made.id, paths=("a",)))
    await house.ask(s.PAYLOAD_DELETE, Ref(caller=ANN, ref=made.id))
    await house.emptied()
    async with open_put(begun.items[0].url) as put:
        await put.commit()
    assert await house.keys()
    items = (("a", begun.items[0].key),)
    await house.ask(s.PAYLOAD_ABANDON, AbandonUploads(caller=ANN, owner=made.id, items=items))
    assert await house.keys() == set()


async def test_a_commit_without_its_bytes_is_refused(house: House) -> None:
    """A commit of what was never put, or of another size, makes nothing visible; repeated rightly, it succeeds."""
    made = await house.create()
    begun = await house.ask(s.PAYLOAD_BEGIN, BeginUploads(caller=ANN, owner=made.id, paths=("a",)))
    (item,) = await house.put(made.id, {"b": b"12"})
    with pytest.raises(Invalid):
        await house.commit(made.id, (item.but(path="a", key=begun.items[0].key),))
    with pytest.raises(IntegrityError):
        await house.commit(made.id, (item.but(size=3),))
    assert await house.paths(made.id) == []
    assert await house.commit(made.id, (item,)) == await house.commit(made.id, (item,))


@pytest.mark.parametrize(
    ("there", "new"), [("a", "a/b"), ("a/b", "a"), ("a/", "a"), ("a", "a/"), ("a/b/c", "a/b"), ("a/b", "a/b/c/d")]
)
async def test_a_path_is_never_file_and_folder(house: House, there: str, new: str) -> None:
    """What could not be laid out on a disk beside what is there is refused when its upload begins."""
    made = await house.create()
    await house.upload(made.id, {there: b""})
    with pytest.raises(Invalid) as refused:
        await house.upload(made.id, {new: b""})
    assert refused.value.errors[0].field == "path"
    assert await house.paths(made.id) == [there]


async def test_of_clashing_uploads_at_once_at_most_one_is_committed(house: House) -> None:
    """Both were begun when neither was there; the commits cannot both succeed."""
    made = await house.create()
    items = [*await house.put(made.id, {"a": b"1"}), *await house.put(made.id, {"a/b": b"2"})]
    results = await asyncio.gather(*(house.commit(made.id, (item,)) for item in items), return_exceptions=True)
    assert any(isinstance(result, Invalid) for result in results)
    assert len(await house.paths(made.id)) <= 1


async def test_a_clash_that_is_committed_between_the_looks_for_one_is_seen(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has looked and commits while the second looks: it was not there yet, and is no longer coming."""
    made = await house.create()
    first, second = [*await house.put(made.id, {"a": b"1"}), *await house.put(made.id, {"a/b": b"2"})]
    looked, looking, done = asyncio.Event(), asyncio.Event(), asyncio.Event()
    commit, clashes = FileHandlers._commit, Repository.clashes

    async def late_commit(self: FileHandlers, items: dict[str, Uploaded], *more: Any) -> Changes:
        if first.path in {item.path for item in items.values()}:
            looked.set()
            await looking.wait()
        return await commit(self, items, *more)

    async def long_look(self: Repository, owner: str, paths: Sequence[str]) -> tuple[str, str] | None:
        found = await clashes(self, owner, paths)
        if second.path in paths:
            looking.set()
            await done.wait()
        return found

    monkeypatch.setattr(FileHandlers, "_commit", late_commit)
    monkeypatch.setattr(Repository, "clashes", long_look)
    async with asyncio.TaskGroup() as group:
        committing = group.create_task(house.commit(made.id, (first,)))
        committing.add_done_callback(lambda _: done.set())
        await looked.wait()
        with pytest.raises(Invalid, match="a"):
            await house.commit(made.id, (second,))
    assert await house.paths(made.id) == ["a"]


async def test_commits_of_one_path_at_once_leave_one_content(house: House) -> None:
    """Of uploads of one path one wins last; every other object is gone."""
    made = await house.create()
    items = [(await house.put(made.id, {"a": bytes([65 + n])}))[0] for n in range(6)]
    await asyncio.gather(*(house.commit(made.id, (item,)) for item in items))
    assert await house.paths(made.id) == ["a"]
    assert len(await house.keys()) == 1


async def test_pages_of_files_go_by_path_and_prefix(house: House) -> None:
    """Pages cover every file once, in order; a prefix narrows them."""
    made = await house.create()
    names = [f"{letter}/{n:03}" for letter in "ab" for n in range(150)]
    for at in range(0, len(names), 256):
        await house.upload(made.id, dict.fromkeys(names[at : at + 256], b"x"))
    seen: list[str] = []
    asked = FileList(caller=ANN, payload=made.id, limit=70)
    while True:
        page = await house.ask(s.PAYLOAD_FILES, asked)
        seen += [file.path for file in page.items]
        if page.next_cursor is None:
            break
        asked = asked.but(cursor=page.next_cursor)
    assert seen == names
    narrowed = await house.ask(s.PAYLOAD_FILES, FileList(caller=ANN, payload=made.id, prefix="b/00"))
    assert [file.path for file in narrowed.items] == [f"b/00{n}" for n in range(10)]


async def test_a_missing_file_is_named_when_it_is_asked_for(house: House) -> None:
    """Signing names the file that is not there."""
    made = await house.create()
    with pytest.raises(NotFound, match=r"b\.txt"):
        await house.ask(s.PAYLOAD_SIGN, SignFiles(caller=ANN, payload=made.id, paths=("b.txt",)))


# --- archives -----------------------------------------------------------------------------------------------------


async def fill(house: House, name: str | None = None, key: str | None = None, *, transient: bool = False) -> Payload:
    """Make a payload that is to be filled."""
    idempotency = Idempotency(key=key, digest="") if key else None
    body = CreatePayload(name=name)
    asked = PayloadCreate(caller=ANN, body=body, idempotency=idempotency, filling=True, transient=transient)
    return await house.ask(s.PAYLOAD_CREATE, asked)


async def opened(house: House, payload: str) -> Payload:
    return await house.ask(s.PAYLOAD_OPEN, Ref(caller=ANN, ref=payload))


async def discard(house: House, payload: str) -> None:
    await house.ask(s.PAYLOAD_DISCARD, Ref(caller=ANN, ref=payload))


async def test_what_is_being_filled_is_found_by_nobody(house: House) -> None:
    """Until it is opened no operation and no list shows it, no job can use it, and no event tells of it."""
    made = await fill(house, "series")
    await house.upload(made.id, {"a": b"1"})
    caller, job = ANN, new_id("job")
    for attempt in (
        lambda: house.ask(s.PAYLOAD_GET, Ref(caller=caller, ref=made.id)),
        lambda: house.ask(s.PAYLOAD_GET, Ref(caller=caller, ref="series")),
        lambda: house.ask(s.PAYLOAD_DELETE, Ref(caller=caller, ref=made.id)),
        lambda: house.ask(s.PAYLOAD_RENAME, Rename(caller=caller, ref=made.id, name="x")),
        lambda: house.ask(s.PAYLOAD_SIGN, SignFiles(caller=caller, payload=made.id, paths=("a",))),
        lambda: house.ask(s.PAYLOAD_SIGN, SignFiles(token=token_of(job, made.id), payload=made.id, paths=("a",))),
        lambda: house.ask(s.PAYLOAD_REMOVE, RemoveFile(caller=caller, payload=made.id, path="a")),
        lambda: house.paths(made.id),
        lambda: house.claim(made.id, job),
        lambda: house.put(made.id, {"b": b""}, caller=BOB),
        lambda: house.ask(s.PAYLOAD_OPEN, Ref(caller=BOB, ref=made.id)),
    ):
        with pytest.raises(NotFound):
            await attempt()
    for state in (None, PayloadState.DRAFT):
        assert (await house.ask(s.PAYLOAD_LIST, PayloadList(caller=ANN, state=state))).items == ()
    with pytest.raises(Invalid):
        await house.ask(s.PAYLOAD_LIST, PayloadList(caller=ANN, state=PayloadState.FILLING))
    other = await house.create()
    assert {event.id for _, event in await house.events()} == {other.id}


async def test_what_was_filled_is_opened_once_and_whole(house: House) -> None:
    """From the opening on it is a payload like any other; opened again it is the same, with one event."""
    made = await fill(house, "series")
    await house.upload(made.id, {"a": b"1", "b/c": b"22"})
    await house.upload(made.id, {"d/": b""})
    shown = await opened(house, made.id)
    assert (shown.id, shown.state, shown.files, shown.bytes) == (made.id, "open", 2, 3)
    assert await opened(house, made.id) == shown == await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref="series"))
    assert await house.paths(made.id) == ["a", "b/c", "d/"]
    assert await read(house, made.id, "b/c") == b"22"
    assert [name for name, _ in await house.events()] == ["created"]
    await discard(house, made.id)  # too late
    assert (await house.claim(made.id, new_id("job"))).id == made.id


async def test_what_is_discarded_leaves_nothing(house: House) -> None:
    """Files, committed or not, go with the payload; neither an event nor a name stays; it cannot be opened any more."""
    made = await fill(house, "series")
    await house.upload(made.id, {"a": b"1"})
    (late,) = await house.put(made.id, {"b": b"1"})
    await discard(house, made.id)
    await house.emptied()
    assert await house.keys() == set()
    assert await house.documents.totals(FILES, ()) == await house.documents.totals(PAYLOADS, ()) == (0, 0)
    for attempt in (
        lambda: opened(house, made.id),
        lambda: discard(house, made.id),
        lambda: house.put(made.id, {"c": b""}),
        lambda: house.commit(made.id, (late,)),
    ):
        with pytest.raises(NotFound):
            await attempt()
    assert await house.events() == []
    await house.create("series")


async def test_a_draft_is_not_opened_by_a_client(house: House) -> None:
    """The draft of a run is neither opened nor discarded: only its run and its job decide on it."""
    made, job = await house.create(), new_id("job")
    await house.claim(made.id, job)
    await house.upload("results", {"r": b"1"}, token=token_of(job, made.id))
    (draft,) = (await house.ask(s.PAYLOAD_LIST, PayloadList(caller=ANN, state=PayloadState.DRAFT))).items
    with pytest.raises(NotFound):
        await opened(house, draft.id)
    await discard(house, draft.id)
    assert await house.end(made.id, job, f"{job}-1") == draft.id


async def test_a_name_that_is_taken_refuses_before_and_after_the_filling(house: House) -> None:
    """Who comes later than another payload of the name is told at once; who is overtaken, when he opens: he goes."""
    made = await fill(house, "series")
    await house.upload(made.id, {"a": b"1"})
    other = await house.create("series")
    with pytest.raises(NameTaken):
        await fill(house, "series")
    with pytest.raises(NameTaken):
        await opened(house, made.id)
    await house.emptied()
    assert await house.keys() == set()
    assert (await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref="series"))).id == other.id


async def test_of_the_same_request_at_once_the_first_that_is_opened_counts(house: House) -> None:
    """Each fills a payload of its own; all answer with the one that was opened first, and the others go."""
    made = [await fill(house, "series", "k") for _ in range(4)]
    assert len({payload.id for payload in made}) == 4
    for payload in made:
        await house.upload(payload.id, {"a": b"1"})
    answers = await asyncio.gather(*(opened(house, payload.id) for payload in made))
    assert len({answer.id for answer in answers}) == 1
    assert answers[0].files == 1
    await house.emptied()
    assert await house.keys() == await house.keys(answers[0].id)
    assert (await fill(house, "series", "k")) == answers[0]
    with pytest.raises(NotFound):
        await opened(house, next(payload.id for payload in made if payload.id != answers[0].id))


async def test_what_nobody_fills_any_more_is_swept(house: House) -> None:
    """An hour after its last files, and not before, it goes with its bytes; the request may come again at any time."""
    made, lost = await fill(house, "series", "k"), await fill(house, "series", "k")
    for batch in "abc":
        await house.upload(made.id, {batch: b"1"})
        await house.sweep()
        house.time.pass_(minutes=40)
    await house.upload(made.id, {"d": b"1"})
    with pytest.raises(NotFound):
        await opened(house, lost.id)
    house.time.pass_(hours=1, minutes=1)
    await house.sweep()
    assert await house.keys() == set()
    assert await house.documents.totals(FILES, ()) == await house.documents.totals(PAYLOADS, ()) == (0, 0)
    again = await fill(house, "series", "k")
    await house.upload(again.id, {"a": b"1"})
    assert (await opened(house, again.id)).files == 1


async def test_what_another_life_of_a_lone_process_filled_goes_at_once(house: House) -> None:
    """Nobody is left to open it: a start of such a process takes it, with committed and pending files."""
    made = await fill(house, "series", "k")
    await house.upload(made.id, {"a": b"1"})
    await house.put(made.id, {"b": b"1"})
    again = build(
        house.service.settings, documents=house.documents, objects=objects_of(house.service.settings), alone=True
    )

    async def swept() -> bool:
        return await house.documents.totals(PAYLOADS, ()) == (0, 0)

    async with again:
        await until(swept)
    assert await house.keys() == set()
    assert await house.documents.totals(FILES, ()) == (0, 0)


# --- held payloads ------------------------------------------------------------------------------------------------


async def test_a_held_payload_stays_as_it_is(house: House) -> None:
    """While a job holds it, begin, commit, remove and delete are refused and name the job; afterwards they succeed."""
    made = await house.create()
    (late,) = await house.put(made.id, {"late": b"1"})
    await house.upload(made.id, {"a": b"1"})
    job = new_id("job")
    assert (await house.claim(made.id, job)).id == made.id
    attempts = (
        lambda: house.put(made.id, {"b": b""}),
        lambda: house.commit(made.id, (late,)),
        lambda: house.ask(s.PAYLOAD_REMOVE, RemoveFile(caller=ANN, payload=made.id, path="a")),
        lambda: house.ask(s.PAYLOAD_DELETE, Ref(caller=ANN, ref=made.id)),
    )
    for attempt in attempts:
        with pytest.raises(PayloadInUse, match=job):
            await attempt()
    assert await house.paths(made.id) == ["a"]
    await house.end(made.id, job, None)
    for attempt in attempts:
        await attempt()


async def test_a_claim_waits_for_a_change_that_was_announced_first(house: House) -> None:
    """A claim answers once the marked file is settled, and then tells of what was committed."""
    made = await house.create()
    await house.upload(made.id, {"a": b"1"})
    file = await house.service.store.get(FILES, file_id(made.id, "a"))
    marked = file.next(changing=Mark(id="m", at=house.time()))
    await house.service.store.replace(FILES, marked)
    claiming = asyncio.create_task(house.claim(made.id, new_id("job")))
    done, _ = await asyncio.wait([claiming], timeout=0.1)
    assert not done
    await house.service.store.replace(FILES, marked.next(changing=None))
    assert (await claiming).id == made.id


async def test_a_change_that_comes_late_undoes_nothing_that_came_since(house: House) -> None:
    """A commit or removal that nobody waits for any more is refused once the file has changed since."""
    made = await house.create()
    (first,) = await house.put(made.id, {"a": b"1"})
    late = first.but(after="")
    await house.upload(made.id, {"a": b"2"})
    with pytest.raises(RevisionConflict):
        await house.commit(made.id, (late,))
    signed = await house.ask(s.PAYLOAD_SIGN, SignFiles(caller=ANN, payload=made.id, paths=("a",)))
    removal = RemoveFile(caller=ANN, payload=made.id, path="a", after=signed.items[0].last_change)
    await house.ask(s.PAYLOAD_REMOVE, removal)
    with pytest.raises(RevisionConflict):
        await house.commit(made.id, (late,))
    await house.upload(made.id, {"a": b"3"})
    with pytest.raises(RevisionConflict):
        await house.ask(s.PAYLOAD_REMOVE, removal)
    assert await read(house, made.id, "a") == b"3"
    urls = await house.ask(s.PAYLOAD_URLS, SignUpload(caller=ANN, owner=made.id, path="a", key=first.key))
    await house.commit(made.id, (first.but(after=urls.last_change),))  # who still waits asks again
    assert await read(house, made.id, "a") == b"1"


async def test_what_a_killed_replica_left_marked_stands_in_nobodys_way_for_long(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mark that a crash left has claims and changes tried again, until its time is over."""
    monkeypatch.setattr(Quiet, "PATIENCE_S", 0.1)
    made = await house.create()
    await house.upload(made.id, {"a": b"1"})
    file = await house.service.store.get(FILES, file_id(made.id, "a"))
    now = house.time()
    await house.service.store.replace(FILES, file.next(changing=Mark(id="m", at=now), unsettled=now))
    with pytest.raises(Unavailable):
        await house.claim(made.id, new_id("job"))
    assert (await house.documents.totals(CLAIMS, ())) == (0, 0)
    with pytest.raises(Unavailable, match="under way"):
        await house.upload(made.id, {"a": b"2"})
    house.time.pass_(seconds=11)
    await house.upload(made.id, {"a": b"2"})
    await house.service.store.update(FILES, file.id, lambda file: (file.next(changing=Mark(id="m", at=now)), ()))
    assert (await house.claim(made.id, new_id("job"))).id == made.id
    assert (await house.service.store.get(FILES, file.id)).changing is None


async def test_changes_and_claims_at_once_never_change_a_held_payload(house: House) -> None:
    """However claims and commits race, what a payload has when a claim is answered, it has while it is held."""
    made = await house.create()
    items = await house.put(made.id, {f"f{n}": b"1" for n in range(8)})
    jobs = [new_id("job") for _ in range(4)]

    async def held(job: str) -> None:
        await house.claim(made.id, job)
        found = await house.paths(made.id)
        for _ in range(3):
            assert await house.paths(made.id) == found
        await house.ask(s.PAYLOAD_RELEASE, ReleaseClaim(payload=made.id, job=job))

    async def commit(number: int) -> None:
        try:
            await house.commit(made.id, (items[number],))
        except PayloadInUse:
            return

    await asyncio.gather(*(held(job) for job in jobs), *(commit(number) for number in range(8)))
    for item in items:
        await house.commit(made.id, (item,))
    assert len(await house.paths(made.id)) == 8


async def test_claims_are_idempotent_released_and_restored(house: House) -> None:
    """A claim counts once; released it holds nothing; restored it holds again, of payloads that are there."""
    made = await house.create()
    job = new_id("job")
    house.jobs.live.add(job)
    await house.claim(made.id, job)
    await house.claim(made.id, job)
    assert (await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref=made.id))).held_by == (job,)
    await house.ask(s.PAYLOAD_RELEASE, ReleaseClaim(payload=made.id, job=job))
    assert (await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref=made.id))).claims == 0
    await house.ask(s.PAYLOAD_RESTORE, RestoreClaims(claims=((made.id, job), (new_id("pay"), job))))
    assert (await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref=made.id))).held_by == (job,)
    assert (await house.documents.totals(CLAIMS, ()))[0] == 1


async def test_a_claim_that_is_restored_too_late_holds_nothing(house: House) -> None:
    """A job that ended since it was listed as live keeps its input; one that is finalized lets it go."""
    ended, finalized = new_id("job"), new_id("job")
    house.jobs.ended |= {ended, finalized}
    house.jobs.finalized.add(finalized)
    kept, gone = await house.create(), await house.create()
    for made in (kept, gone):
        await house.upload(made.id, {"a": b"1"})
    await house.ask(s.PAYLOAD_RESTORE, RestoreClaims(claims=((kept.id, ended), (gone.id, finalized))))
    found = await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref=kept.id))
    assert (found.held_by, found.claims) == ((), 1)
    with pytest.raises(NotFound):
        await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref=gone.id))


async def test_a_claim_of_no_job_keeps_no_input_for_ever(house: House) -> None:
    """What a finalized job had goes when the claim is swept of a job that never came to be; without it, it stays."""
    jobs = [new_id("job") for _ in range(3)]
    house.jobs.live.update(jobs[:2])
    kept, gone = await house.create(), await house.create()
    for made, own in ((gone, jobs[0]), (kept, jobs[1])):
        await house.upload(made.id, {"a": b"1"})
        await house.claim(made.id, own)
        await house.claim(made.id, jobs[2])
    await house.ask(s.PAYLOAD_FINALIZE, FinalizeInput(job=jobs[0], payload=gone.id))
    assert (await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref=gone.id))).held_by == (jobs[2],)
    house.time.pass_(minutes=70)
    await house.sweep()
    assert (await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref=kept.id))).held_by == (jobs[1],)
    with pytest.raises(NotFound):
        await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref=gone.id))


@pytest.mark.parametrize("how", ["release", "drop"])
async def test_what_a_finalized_job_had_goes_with_its_last_claim(house: House, how: str) -> None:
    """Also where that is of a job that was given up, or is deleted; without a finalized job, it stays."""
    jobs = [new_id("job") for _ in range(2)]
    house.jobs.live.update(jobs)
    kept, gone = await house.create(), await house.create()
    for made in (kept, gone):
        await house.upload(made.id, {"a": b"1"})
        await house.claim(made.id, jobs[1])
    await house.claim(gone.id, jobs[0])
    await house.ask(s.PAYLOAD_FINALIZE, FinalizeInput(job=jobs[0], payload=gone.id))
    assert (await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref=gone.id))).held_by == (jobs[1],)
    if how == "drop":
        await house.ask(s.PAYLOAD_DROP, DropJob(job=jobs[1]))
    else:
        for made in (kept, gone):
            await house.ask(s.PAYLOAD_RELEASE, ReleaseClaim(payload=made.id, job=jobs[1]))
    assert (await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref=kept.id))).claims == 0
    with pytest.raises(NotFound):
        await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref=gone.id))


async def test_a_draft_is_no_input(house: House) -> None:
    """Clients may read a draft by id, but neither change it nor run jobs on it; only `state=draft` lists it."""
    made, job = await house.create(), new_id("job")
    await house.claim(made.id, job)
    await house.upload("results", {"r": b"1"}, token=token_of(job, made.id))
    assert [each.id for each in (await house.ask(s.PAYLOAD_LIST, PayloadList(caller=ANN))).items] == [made.id]
    asked = PayloadList(caller=ANN, state=PayloadState.DRAFT)
    (draft,) = (await house.ask(s.PAYLOAD_LIST, asked)).items
    assert (await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref=draft.id))).files == 1
    for attempt in (
        lambda: house.claim(draft.id, new_id("job")),
        lambda: house.put(draft.id, {"x": b""}),
        lambda: house.ask(s.PAYLOAD_DELETE, Ref(caller=ANN, ref=draft.id)),
    ):
        with pytest.raises(Conflict):
            await attempt()


# --- runs ---------------------------------------------------------------------------------------------------------


async def test_the_token_of_a_run_reaches_its_input_results_and_log_only(house: House) -> None:
    """Everything else is forbidden: other payloads, logs of other attempts, other owners, no or a forged token."""
    made, other, job = await house.create(), await house.create(), new_id("job")
    await house.upload(made.id, {"a": b"1"})
    await house.claim(made.id, job)
    token = token_of(job, made.id)
    page = await house.ask(s.PAYLOAD_FILES, FileList(token=token, payload=made.id))
    assert [file.path for file in page.items] == ["a"]
    await house.ask(s.PAYLOAD_SIGN, SignFiles(token=token, payload=made.id, paths=("a",)))
    await house.upload("log", {"1.log": b"line"}, token=token)
    attempts = (
        lambda: house.ask(s.PAYLOAD_FILES, FileList(token=token, payload=other.id)),
        lambda: house.ask(s.PAYLOAD_FILES, FileList(payload=made.id)),
        lambda: house.ask(s.PAYLOAD_FILES, FileList(token=token + "0", payload=made.id)),
        lambda: house.put("log", {"2.log": b""}, token=token),
        lambda: house.put(made.id, {"b": b""}, token=token),
        lambda: house.put(new_id("job"), {"1.log": b""}, token=token),
    )
    for attempt in attempts:
        with pytest.raises(Forbidden):
            await attempt()


async def test_results_are_bound_once_and_for_one_run(house: House) -> None:
    """The end binds the run's draft with a claim, lets the input go, and answers the same when it is asked again."""
    made, job = await house.create(), new_id("job")
    await house.claim(made.id, job)
    first, second = token_of(job, made.id, 1), token_of(job, made.id, 2)
    await house.upload("results", {"lost": b"1"}, token=first)
    await house.upload("results", {"r/1": b"12", "r/2": b"3"}, token=second)
    results = await house.end(made.id, job, f"{job}-2", partial=True)
    assert results == await house.end(made.id, job, f"{job}-2") == await house.end(made.id, job, f"{job}-1")
    assert results
    bound = await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref=results))
    assert (bound.state, bound.job, bound.partial, bound.files, bound.bytes) == ("open", job, True, 2, 3)
    assert (bound.claims, bound.held_by) == (1, ())
    assert (await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref=made.id))).held_by == ()
    await house.emptied()
    assert await house.keys() == await house.keys(results)
    assert [name for name, event in await house.events() if event.id == results] == ["created"]
    assert {event.id for _, event in await house.events()} == {made.id, results}


async def test_a_run_that_left_nothing_has_empty_results(house: House) -> None:
    """With a run and no draft the results are there and empty; without a run there are none."""
    made, job, canceled = await house.create(), new_id("job"), new_id("job")
    await house.claim(made.id, job)
    await house.claim(made.id, canceled)
    results = await house.end(made.id, job, f"{job}-1")
    assert results
    assert await house.paths(results) == []
    assert await house.end(made.id, canceled, None) is None
    assert (await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref=made.id))).claims == 2


async def test_ends_asked_at_once_agree(house: House) -> None:
    """Of many ends at once, for different runs, all answer the same results, with one claim."""
    made, job = await house.create(), new_id("job")
    await house.claim(made.id, job)
    runs = [f"{job}-{n}" for n in (1, 2)] * 4
    answers = {await answer for answer in asyncio.as_completed([house.end(made.id, job, run) for run in runs])}
    assert len(answers) == 1
    assert (await house.documents.totals(CLAIMS, ()))[0] == 2
    assert (await house.documents.totals(PAYLOADS, ()))[0] == 2


async def test_a_fenced_run_writes_nothing_after_the_end(house: House) -> None:
    """Once the job has ended, begins and commits of its runs are refused, and nothing is added to its results."""
    made, job = await house.create(), new_id("job")
    await house.claim(made.id, job)
    token = token_of(job, made.id)
    items = await house.put("results", {"late": b"1"}, token=token)
    results = await house.end(made.id, job, f"{job}-1")
    assert results
    for attempt in (
        lambda: house.put("log", {"1.log": b""}, token=token),
        lambda: house.commit("results", items, token=token),
    ):
        with pytest.raises(JobTerminal):
            await attempt()
    assert await house.paths(results) == []


async def test_a_run_whose_claim_was_lost_goes_on_while_its_job_lives(house: House) -> None:
    """Without a claim the job service decides: a live job's run writes, an unknown job's does not."""
    made, job = await house.create(), new_id("job")
    with pytest.raises(JobTerminal):
        await house.put("results", {"r": b""}, token=token_of(job, made.id))
    house.jobs.live.add(job)
    await house.upload("results", {"r": b""}, token=token_of(job, made.id))


async def test_the_kept_log_is_read_by_job_and_attempt(house: House) -> None:
    """An attempt's log is signed for whoever may see the job; there is none of an attempt without log."""
    made, job = await house.create(), new_id("job")
    await house.claim(made.id, job)
    await house.upload("log", {"1.log": b"a line"}, token=token_of(job, made.id))
    signed = await house.ask(s.PAYLOAD_LOG, LogRef(job=job, attempt=1))
    async with open_get(signed.url) as get:
        assert b"".join([chunk async for chunk in get]) == b"a line"
    with pytest.raises(NotFound):
        await house.ask(s.PAYLOAD_LOG, LogRef(job=job, attempt=2))


# --- what goes ----------------------------------------------------------------------------------------------------


async def exists(house: House, payload: str) -> bool:
    try:
        await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref=payload))
    except NotFound:
        return False
    return True


async def test_a_deleted_payload_is_gone_at_once_and_wholly(house: House) -> None:
    """After the answer nobody finds it; then documents and objects go, and `deleted` is published once."""
    made = await house.create("scans")
    await house.upload(made.id, {f"{n}": b"1" for n in range(20)})
    await house.put(made.id, {"half": b"1"})
    await house.ask(s.PAYLOAD_DELETE, Ref(caller=ANN, ref="scans"))
    assert not await exists(house, made.id)
    with pytest.raises(NotFound):
        await house.paths(made.id)
    await house.emptied()
    assert await house.keys() == set()
    assert await house.documents.totals(FILES, ()) == (0, 0)
    assert [name for name, _ in await house.events()].count("deleted") == 1


async def test_contents_go_with_the_last_claim(house: House) -> None:
    """Finalizing deletes the input when nobody else claims it, and only then."""
    made, jobs = await house.create(), [new_id("job") for _ in range(2)]
    for job in jobs:
        await house.claim(made.id, job)
        await house.end(made.id, job, None)
    await house.ask(s.PAYLOAD_FINALIZE, FinalizeInput(job=jobs[0], payload=made.id))
    assert await exists(house, made.id)
    await house.ask(s.PAYLOAD_FINALIZE, FinalizeInput(job=jobs[1], payload=made.id))
    assert not await exists(house, made.id)
    await house.ask(s.PAYLOAD_FINALIZE, FinalizeInput(job=jobs[1], payload=made.id))


async def test_kept_contents_stay(house: House) -> None:
    """A payload with `keep` outlives its last claim."""
    made, job = await house.create(keep=True), new_id("job")
    await house.claim(made.id, job)
    await house.end(made.id, job, None)
    await house.ask(s.PAYLOAD_FINALIZE, FinalizeInput(job=job, payload=made.id))
    assert await exists(house, made.id)


async def test_a_deleted_job_takes_results_and_logs_and_leaves_the_input(house: House) -> None:
    """Dropping a job removes its claims, its logs, drafts and unclaimed results; its input stays."""
    made, job = await house.create(), new_id("job")
    await house.claim(made.id, job)
    token = token_of(job, made.id)
    await house.upload("log", {"1.log": b"line"}, token=token)
    await house.upload("results", {"r": b"1"}, token=token)
    results = await house.end(made.id, job, f"{job}-1")
    assert results
    await house.ask(s.PAYLOAD_DROP, DropJob(job=job))
    await house.ask(s.PAYLOAD_DROP, DropJob(job=job))
    assert not await exists(house, results)
    assert await exists(house, made.id)
    await house.emptied()
    assert await house.keys() == set()
    assert (await house.documents.totals(CLAIMS, ()))[0] == 0


async def test_results_that_another_job_uses_outlive_their_job(house: House) -> None:
    """Results claimed as another job's input stay until that job lets go."""
    made, job, user = await house.create(), new_id("job"), new_id("job")
    await house.claim(made.id, job)
    results = await house.end(made.id, job, f"{job}-1")
    assert results
    await house.claim(results, user)
    await house.ask(s.PAYLOAD_DROP, DropJob(job=job))
    assert await exists(house, results)
    await house.end(results, user, None)
    await house.ask(s.PAYLOAD_FINALIZE, FinalizeInput(job=user, payload=results))
    assert not await exists(house, results)


# --- what the sweep makes up for ----------------------------------------------------------------------------------


async def test_an_upload_that_nobody_finishes_is_swept(house: House) -> None:
    """A pending upload lives for an hour, then its bytes and its document go; a commit then finds nothing."""
    made = await house.create()
    (item,) = await house.put(made.id, {"a": b"1"})
    await house.sweep()
    assert await house.keys() == {item.key}
    house.time.pass_(hours=1, minutes=1)
    await house.sweep()
    assert await house.keys() == set()
    assert await house.documents.totals(FILES, ()) == (0, 0)
    with pytest.raises(Conflict):
        await house.commit(made.id, (item,))


async def test_what_serves_one_job_goes_without_one(house: House) -> None:
    """A transient payload that no job claims goes a minute after it was opened; one that is half full, soon after."""
    kept, forsaken, half = [await fill(house, transient=True) for _ in range(3)]
    for made in (kept, forsaken, half):
        await house.upload(made.id, {"a": b"1"})
    for made in (kept, forsaken):
        await opened(house, made.id)
    job = new_id("job")
    await house.claim(kept.id, job)
    house.jobs.live.add(job)
    await house.sweep()
    assert len(await house.keys()) == 3
    house.time.pass_(minutes=2)
    await house.sweep()
    assert (await exists(house, kept.id), await exists(house, forsaken.id)) == (True, False)
    assert len(await house.keys()) == 2
    house.time.pass_(minutes=15)
    await house.sweep()
    assert await exists(house, kept.id)
    assert len(await house.keys()) == 1


async def test_nothing_of_what_serves_one_job_is_there_after_the_answer(house: House) -> None:
    """Input, results, drafts and logs of such a job are gone when the answer comes that they go, to the last byte."""
    made, job = await fill(house, transient=True), new_id("job")
    await house.upload(made.id, {"a": b"1"})
    await opened(house, made.id)
    await house.claim(made.id, job)
    for attempt in (1, 2):
        await house.upload("results", {"r": b"1"}, token=token_of(job, made.id, attempt))
    assert await house.end(made.id, job, f"{job}-2")
    await house.ask(s.PAYLOAD_FINALIZE, FinalizeInput(job=job, payload=made.id))
    await house.ask(s.PAYLOAD_DROP, DropJob(job=job, wait=True))
    assert await house.keys() == set()
    assert await house.service.store.find(PAYLOADS) == []
    for end in (s.PAYLOAD_DISCARD, s.PAYLOAD_DELETE):
        again = await fill(house, transient=True)
        await house.upload(again.id, {"a": b"1"})
        if end is s.PAYLOAD_DELETE:
            await opened(house, again.id)
        await house.ask(end, Ref(caller=ANN, ref=again.id))
        assert await house.keys() == set()


async def test_what_another_life_of_a_lone_process_began_is_dead_at_once(house: House) -> None:
    """Uploads begun, and claims made for jobs that never came, before such a process started are swept at its start."""
    made = await house.create()
    await house.put(made.id, {"a": b"1"})
    await house.claim(made.id, new_id("job"))
    again = build(
        house.service.settings, documents=house.documents, objects=objects_of(house.service.settings), alone=True
    )

    async def swept() -> bool:
        return (await house.documents.totals(FILES, ()), await house.documents.totals(CLAIMS, ())) == ((0, 0), (0, 0))

    async with again:
        await until(swept)
    assert await house.keys() == set()


async def test_urls_are_signed_again_while_an_upload_is_wanted(house: House) -> None:
    """Who may write gets fresh URLs for his own upload, until it is given up; nobody else does."""
    made, other = await house.create(), await house.create()
    (begun,) = (await house.ask(s.PAYLOAD_BEGIN, BeginUploads(caller=ANN, owner=made.id, paths=("x",)))).items
    asked = SignUpload(caller=ANN, owner=made.id, path="x", key=begun.key)
    async with open_put((await house.ask(s.PAYLOAD_URLS, asked)).put) as put:
        await put.write(b"data")
        await put.commit()
    async with open_get((await house.ask(s.PAYLOAD_URLS, asked)).get) as get:
        assert [chunk async for chunk in get] == [b"data"]
    for wrong in (
        asked.but(path="y"),
        asked.but(owner=other.id),
        asked.but(key=f"{made.id}/upl_stray-{'0' * 32}"),
    ):
        with pytest.raises(Conflict):
            await house.ask(s.PAYLOAD_URLS, wrong)
    with pytest.raises(NotFound):
        await house.ask(s.PAYLOAD_URLS, asked.but(caller=BOB))
    for token in (token_of(new_id("job"), made.id), None):
        with pytest.raises((Forbidden, JobTerminal)):
            await house.ask(s.PAYLOAD_URLS, asked.but(caller=None, token=token))
    await house.ask(s.PAYLOAD_ABANDON, AbandonUploads(caller=ANN, owner=made.id, items=(("x", begun.key),)))
    with pytest.raises(Conflict):
        await house.ask(s.PAYLOAD_URLS, asked)


async def test_objects_that_no_document_knows_are_found(house: House) -> None:
    """The audit removes objects without a file and leaves the others."""
    made = await house.create()
    await house.upload(made.id, {"a": b"1"})
    known = await house.keys()
    async with open_put(house.objects.sign_put(f"{made.id}/upl_stray-{'0' * 32}")) as put:
        await put.commit()
    house.time.pass_(days=2)
    await house.sweep()
    assert await house.keys() == known


async def test_a_deletion_that_a_crash_interrupted_is_finished(house: House) -> None:
    """A payload left marked goes, unless a job holds it: then it is back, with its name."""
    free, held, job = await house.create("free"), await house.create("held"), new_id("job")
    await house.claim(held.id, job)
    house.jobs.live.add(job)
    for made in (free, held):
        document = await house.service.store.get(PAYLOADS, made.id)
        await house.service.store.replace(PAYLOADS, document.next(state=PayloadState.DELETING, updated_at=house.time()))
    house.time.pass_(minutes=2)
    await house.sweep()
    assert not await exists(house, free.id)
    assert (await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref="held"))).held_by == (job,)


async def test_a_deletion_that_waits_is_asked_for_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot go while the store is away is not lined up again by every sweep."""
    deletion = Deletion(house.service.store, Repository(house.service.store), None, house.time)  # type: ignore[arg-type]
    finished = asyncio.Queue[str]()
    monkeypatch.setattr(deletion, "finish", finished.put)
    for payload in ("pay_a", "pay_a", "pay_b", "pay_a"):
        deletion.soon(payload)
    running = asyncio.create_task(deletion.run())
    try:
        async with asyncio.timeout(20):
            assert [await finished.get() for _ in range(2)] == ["pay_a", "pay_b"]
            deletion.soon("pay_a")
            assert await finished.get() == "pay_a"
    finally:
        running.cancel()
    assert finished.empty()


async def test_claims_of_jobs_that_never_came_are_swept(house: House) -> None:
    """An hour after it was made a claim goes whose job does not exist; of a live job it stays, of an ended it keeps."""
    made = await house.create()
    live, ended, gone = (new_id("job") for _ in range(3))
    for job in (live, ended, gone):
        await house.claim(made.id, job)
    house.jobs.live.add(live)
    house.jobs.ended.add(ended)
    house.time.pass_(minutes=50)
    await house.sweep()
    assert (await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref=made.id))).claims == 3
    house.time.pass_(minutes=20)
    await house.sweep()
    after = await house.ask(s.PAYLOAD_GET, Ref(caller=ANN, ref=made.id))
    assert (after.claims, after.held_by) == (2, (live,))


async def test_drafts_of_jobs_that_ended_are_swept(house: House) -> None:
    """A draft stays while its job lives; when it has ended without it, draft and bytes go."""
    made, job = await house.create(), new_id("job")
    await house.claim(made.id, job)
    house.jobs.live.add(job)
    await house.upload("results", {"r": b"1"}, token=token_of(job, made.id))
    house.time.pass_(minutes=5)
    await house.sweep()
    assert len(await house.keys()) == 1
    house.jobs.live.remove(job)
    await house.sweep()
    assert await house.keys() == set()
    assert (await house.documents.totals(PAYLOADS, ()))[0] == 1
