"""MongoDB's promises beyond the contract: lost answers, crashes of either side, several processes, clear refusals."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gurney import ids
from gurney.documents.mongo import MongoDocuments
from gurney.documents.mongo_link import Bounds
from gurney.documents.port import Collection, Query, Where, Write
from gurney.errors import GurneyError, KeyTaken, RevisionConflict, StoreUnavailable, TooLarge
from gurney.testing.child import free_port
from gurney.testing.mongo import MongoServer
from tests.contract.cutting_proxy import CuttingProxy
from tests.contract.things import OTHERS, THINGS, Thing, event, insert, thing

pytestmark = [pytest.mark.needs("mongo")]

#: As in production, and five times as impatient.
HASTY = Bounds(selection=0.8, connect=0.5, reply=1.0, read=2.0, write=2.0)


@asynccontextmanager
async def opened(url: str, database: str, bounds: Bounds = HASTY) -> AsyncIterator[MongoDocuments]:
    documents = MongoDocuments(url, database, bounds)
    try:
        await documents.open([THINGS, OTHERS])
        yield documents
    finally:
        await documents.close()


@pytest.fixture
async def database(mongo_server: MongoServer) -> AsyncIterator[str]:
    """The name of a database that goes with the test."""
    name = ids.new_id("ins")
    yield name
    await asyncio.to_thread(mongo_server.drop, name)


@asynccontextmanager
async def behind_a_proxy(
    server: MongoServer, database: str
) -> AsyncIterator[tuple[MongoDocuments, MongoDocuments, CuttingProxy]]:
    """Documents over a proxy that loses answers, others that are connected as usual, and the proxy."""
    assert server.port
    async with CuttingProxy(server.port) as proxy:
        url = f"mongodb://127.0.0.1:{proxy.port}/?directConnection=true"
        async with opened(url, database) as over, opened(server.url, database) as straight:
            yield over, straight, proxy


# --- lost answers ---


async def test_a_write_whose_answer_is_lost_is_answered_as_held(mongo_server: MongoServer, database: str) -> None:
    """Insert, replacement and removal are done once and reported as done, with their events, whatever else was sent."""
    async with behind_a_proxy(mongo_server, database) as (documents, _, proxy):
        first = thing(1, name="head")
        steps = [
            Write(THINGS, "t0001", 0, first, (event(1),)),
            Write(THINGS, "t0001", 1, first.next(size=2), (event(2),)),
            Write(THINGS, "t0001", 2, None, (event(3),)),
            Write(THINGS, "t0001", 0, thing(1, name="head"), (event(4),)),
        ]
        for number, step in enumerate(steps):
            proxy.lose_answer_to(b"t0001")
            beside = thing(10 + number)
            assert await documents.cas([step, Write(THINGS, beside.id, 0, beside)]) == [None, None]
        assert proxy.lost == 4
        assert await documents.get(THINGS, "t0001") == thing(1, name="head")
        assert [each.id for each in await documents.unpublished(THINGS, 0)] == ["evt_1", "evt_2", "evt_3", "evt_4"]


async def test_a_write_that_was_overwritten_before_its_answer_was_lost_held(
    mongo_server: MongoServer, database: str
) -> None:
    """Who wrote is found by the mark, also when others have changed or removed the document since."""
    async with behind_a_proxy(mongo_server, database) as (documents, others, proxy):
        written = thing(1)
        await insert(documents, written)

        async def overwrite() -> None:
            for revision in range(2, 6):
                after = thing(1, size=100).but(revision=revision + 1)
                assert await others.cas([Write(THINGS, "t0001", revision, after)]) == [None]

        proxy.lose_answer_to(b"t0001", overwrite)
        assert await documents.cas([Write(THINGS, "t0001", 1, written.next(size=2))]) == [None]
        assert (await documents.get(THINGS, "t0001")) == thing(1, size=100).but(revision=6)

        proxy.lose_answer_to(b"t0002", lambda: others.cas([Write(THINGS, "t0002", 1, None)]))
        await insert(documents, thing(2))
        assert await documents.get(THINGS, "t0002") is None
        assert proxy.lost == 2


async def test_a_write_that_lost_and_whose_answer_is_lost_is_a_conflict(
    mongo_server: MongoServer, database: str
) -> None:
    """The mark of somebody else does not make a loser a winner; a key that is held is told with its holder."""
    async with behind_a_proxy(mongo_server, database) as (documents, others, proxy):
        await insert(others, thing(1, name="head"))
        proxy.lose_answer_to(b"t0001")
        (fault,) = await documents.cas([Write(THINGS, "t0001", 7, thing(1).but(revision=8))])
        assert isinstance(fault, RevisionConflict)
        proxy.lose_answer_to(b"t0002")
        (taken,) = await documents.cas([Write(THINGS, "t0002", 0, thing(2, name="head"))])
        assert isinstance(taken, KeyTaken)
        assert (taken.key, taken.holder) == ("name:head", "t0001")
        assert proxy.lost == 2


async def test_a_lost_settlement_brings_events_back_at_most(mongo_server: MongoServer, database: str) -> None:
    """When the answer to `settle` is lost nobody waits or fails, and what is left is found by the next look."""
    async with behind_a_proxy(mongo_server, database) as (documents, _, proxy):
        await insert(documents, thing(1), events=(event(1), event(2)))
        proxy.lose_answer_to(b"$pull")
        await documents.settle(THINGS, ["evt_1"])
        assert {"evt_2"} <= {each.id for each in await documents.unpublished(THINGS, 0)} <= {"evt_1", "evt_2"}
        await documents.settle(THINGS, ["evt_1", "evt_2"])
        assert await documents.unpublished(THINGS, 0) == []


# --- the server ends ---


async def writing(documents: MongoDocuments, number: int, until: asyncio.Event, done: list[int]) -> list[GurneyError]:
    """Write a document of one's own again and again; count what is answered as held, return what is not."""
    faults: list[GurneyError] = []
    while not until.is_set():
        current = await reading(documents, number)
        revision = current.revision if current else 0
        if revision < done[number]:
            raise AssertionError(f"t{number:04} was answered at {done[number]} and is read at {revision}")
        after = thing(number).but(revision=revision + 1)
        (fault,) = await documents.cas([Write(THINGS, after.id, revision, after, (event(1000 * number + revision),))])
        if fault:
            faults.append(fault)
        else:
            done[number] = revision + 1
    return faults


async def reading(documents: MongoDocuments, number: int) -> Thing | None:
    while True:
        with suppress(StoreUnavailable):
            return await documents.get(THINGS, f"t{number:04}")


async def progress(done: list[int]) -> None:
    """Return when each writer has got on since now."""
    before = list(done)
    while not all(now > then for now, then in zip(done, before, strict=True)):
        await asyncio.sleep(0.01)


async def under_load(server: MongoServer, disturb: Callable[[], Any], times: int) -> list[GurneyError]:
    """Disturb the server while twenty write; check that nothing answered is lost; return the writes that failed."""
    database, done, until = ids.new_id("ins"), [0] * 20, asyncio.Event()
    async with opened(server.url, database, Bounds(selection=3, connect=1, reply=2, read=5, write=8)) as documents:
        writers = [asyncio.create_task(writing(documents, number, until, done)) for number in range(len(done))]
        for _ in range(times):
            await progress(done)
            await asyncio.to_thread(disturb)
        await progress(done)
        until.set()
        faults = [fault for found in await asyncio.gather(*writers) for fault in found]
        stored = await documents.find(THINGS, Query(sort=("id",), descending=False))
        told: dict[str, int] = {}
        while events := await documents.unpublished(THINGS, 0):
            for each in events:
                number = int(each.id.removeprefix("evt_")) // 1000
                told[f"t{number:04}"] = told.get(f"t{number:04}", 0) + 1
            await documents.settle(THINGS, [each.id for each in events])
    assert [each.revision for each in stored] >= done
    assert told == {each.id: each.revision for each in stored}
    return faults


def crash(server: MongoServer) -> None:
    server.kill()
    server.start()


def freeze(server: MongoServer, seconds: float) -> None:
    server.pause()
    time.sleep(seconds)
    server.resume()


async def test_a_crash_of_the_server_under_load_loses_nothing_and_is_seen_by_nobody(own_mongo: MongoServer) -> None:
    """When mongod is killed and started, each answered write is there with its events; no write is told a conflict."""
    faults = await under_load(own_mongo, partial(crash, own_mongo), 3)
    assert not [fault for fault in faults if not isinstance(fault, StoreUnavailable)]


async def test_a_server_that_hangs_for_longer_than_a_reply_may_take_loses_nothing(own_mongo: MongoServer) -> None:
    """When mongod goes on after replies were given up, each write held once and is answered so."""
    faults = await under_load(own_mongo, partial(freeze, own_mongo, 3.0), 1)
    assert not [fault for fault in faults if not isinstance(fault, StoreUnavailable)]


async def test_a_server_that_is_away_is_told_in_time_and_is_used_when_it_is_back(own_mongo: MongoServer) -> None:
    """While mongod is down or frozen, reads and writes fail within their bounds; afterwards they work."""
    async with opened(own_mongo.url, "gurney") as documents:
        for away, back in [(own_mongo.kill, own_mongo.start), (own_mongo.pause, own_mongo.resume)]:
            await asyncio.to_thread(away)
            attempts: list[Callable[[], Any]] = [
                lambda: documents.get(THINGS, "t0001"),
                lambda: documents.find(THINGS, Query()),
                lambda: documents.by_key(THINGS, "name:a"),
                lambda: documents.totals(THINGS, []),
                lambda: documents.unpublished(THINGS, 0),
            ]
            async with asyncio.timeout(10):
                tries = await asyncio.gather(*(each() for each in attempts), return_exceptions=True)
                (fault,) = await documents.cas([Write(THINGS, "t0009", 1, thing(9).next())])
            for each in (*tries, fault):
                assert isinstance(each, StoreUnavailable)
                assert f"MongoDB at 127.0.0.1:{own_mongo.port}" in str(each)
            await asyncio.to_thread(back)
            async with asyncio.timeout(10):
                while True:
                    with suppress(StoreUnavailable):
                        await documents.get(THINGS, "t0001")
                        break
        await insert(documents, thing(1))


# --- the client ends ---

CLIENT = """
import asyncio, sys
from gurney.documents.mongo import MongoDocuments
from gurney.documents.port import Write
from tests.contract.things import THINGS, event, thing

async def main():
    documents = MongoDocuments(sys.argv[1], sys.argv[2])
    await documents.open([THINGS])
    async def write(number):
        revision = 0
        while True:
            after = thing(number).but(revision=revision + 1)
            told = (event(100_000 * number + revision),)
            assert await documents.cas([Write(THINGS, after.id, revision, after, told)]) == [None]
            revision += 1
            print(number, revision, flush=True)
    await asyncio.gather(*(write(number) for number in range(20)))

asyncio.run(main())
"""


async def test_what_a_killed_process_was_answered_is_there_with_its_events(
    mongo_server: MongoServer, database: str
) -> None:
    """SIGKILL of a writing process: documents have what was answered, and exactly the events of their revisions."""
    command = [sys.executable, "-c", CLIENT, mongo_server.url, database]
    start = partial(subprocess.Popen, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    client = await asyncio.to_thread(start, command)
    assert client.stdout
    lines = [await asyncio.to_thread(client.stdout.readline) for _ in range(500)]
    client.send_signal(signal.SIGKILL)
    rest, _ = await asyncio.to_thread(client.communicate)
    answered: dict[str, int] = {}
    for line in "".join([*lines, rest]).splitlines():
        if len(told := line.split()) == 2:
            answered[f"t{int(told[0]):04}"] = int(told[1])
    async with opened(mongo_server.url, database) as documents:
        stored = {each.id: each.revision for each in await documents.find(THINGS, Query(sort=("id",)))}
        assert stored.keys() >= answered.keys()
        assert all(stored[id_] >= revision for id_, revision in answered.items())
        events = await documents.unpublished(THINGS, 0)
        assert len(events) == min(sum(stored.values()), 1000)


# --- several processes ---


async def test_what_one_was_answered_all_others_read(mongo_server: MongoServer, database: str) -> None:
    """A reader elsewhere never sees less than an answered write, however it reads."""
    async with opened(mongo_server.url, database) as one, opened(mongo_server.url, database) as other:
        await insert(one, thing(1))
        for revision in range(1, 60):
            after = thing(1, name=f"n{revision}", size=revision).but(revision=revision + 1)
            writer, reader = (one, other) if revision % 2 else (other, one)
            assert await writer.cas([Write(THINGS, "t0001", revision, after)]) == [None]
            assert await reader.get(THINGS, "t0001") == after
            assert await reader.by_key(THINGS, f"name:n{revision}") == after
            assert await reader.find(THINGS, Query((Where("size", "=", revision),))) == [after]
            assert await reader.totals(THINGS, [], "size") == (1, revision)


async def test_of_claims_in_several_processes_one_wins(mongo_server: MongoServer, database: str) -> None:
    """Keys and revisions have one winner each, also when those who ask are not in one process."""
    async with opened(mongo_server.url, database) as one, opened(mongo_server.url, database) as other:
        tries = [
            (one, other)[n % 2].cas([Write(THINGS, f"t{n:04}", 0, thing(n, name=f"k{n // 10}"))]) for n in range(100)
        ]
        results = [result for (result,) in await asyncio.gather(*tries)]
        assert sum(result is None for result in results) == 10
        assert sum(isinstance(result, KeyTaken) for result in results) == 90
        held = await one.find(THINGS, Query(sort=("id",)))
        assert {each.name for each in held} == {f"k{n}" for n in range(10)}


async def test_events_that_another_process_left_are_found_and_settled(mongo_server: MongoServer, database: str) -> None:
    """Whoever sweeps publishes and settles what a process left that is gone."""
    async with opened(mongo_server.url, database) as one:
        await insert(one, thing(1), events=(event(1), event(2)))
        await one.cas([Write(THINGS, "t0001", 1, None, (event(3),))])
    async with opened(mongo_server.url, database) as other:
        found = await other.unpublished(THINGS, 0)
        assert [each.id for each in found] == ["evt_1", "evt_2", "evt_3"]
        await other.settle(THINGS, [each.id for each in found])
        assert await other.unpublished(THINGS, 0) == []


async def test_tombstones_go_when_they_are_old_and_have_no_events(
    mongo_server: MongoServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep removes what was removed long ago, except where events are left to tell of it."""
    async with opened(mongo_server.url, database) as documents:
        await insert(documents, thing(1), thing(2), thing(3))
        await documents.cas([Write(THINGS, "t0001", 1, None), Write(THINGS, "t0002", 1, None, (event(2),))])

        def stored() -> set[str]:
            with mongo_server.client() as client:
                return {each["_id"] for each in client[database]["things"].find()}

        await documents.unpublished(THINGS, 10)
        assert await asyncio.to_thread(stored) == {"t0001", "t0002", "t0003"}
        monkeypatch.setattr("gurney.documents.mongo.TOMBSTONE_S", -1.0)
        await documents.unpublished(THINGS, 10)
        assert await asyncio.to_thread(stored) == {"t0002", "t0003"}


async def test_no_trace_of_settled_events_is_left_in_the_index(mongo_server: MongoServer, database: str) -> None:
    """The sweep looks at documents with unsettled events alone."""
    async with opened(mongo_server.url, database) as documents:
        await insert(documents, *(thing(number) for number in range(50)))
        told = [Write(THINGS, f"t{n:04}", 1, thing(n).next(), (event(n),)) for n in range(50)]
        assert set(await documents.cas(told)) == {None}
        await documents.settle(THINGS, [f"evt_{n}" for n in range(49)])
        assert [each.id for each in await documents.unpublished(THINGS, 0)] == ["evt_49"]

        def keys_looked_at() -> int:
            with mongo_server.client() as client:
                every = client[database]["things"].find({"events.at": {"$lte": 1e12}}).hint("events")
                return int(every.explain()["executionStats"]["totalKeysExamined"])

        assert await asyncio.to_thread(keys_looked_at) <= 2


# --- refusals ---


async def refusal(url: str, collections: tuple[Collection[Any], ...] = (THINGS,), database: str = "gurney") -> str:
    """Return why documents cannot be opened."""
    documents = MongoDocuments(url, database, HASTY)
    try:
        async with asyncio.timeout(10):
            with pytest.raises(StoreUnavailable) as refused:
                await documents.open(collections)
    finally:
        await documents.close()
    assert "\n" not in str(refused.value)
    assert "s3cret" not in str(refused.value)
    assert len(str(refused.value)) < 300
    return str(refused.value)


async def test_a_server_that_cannot_be_reached_is_one_clear_line() -> None:
    """The line names the server and what is wrong, and does not tell the password."""
    port = free_port()
    told = await refusal(f"mongodb://ann:s3cret@127.0.0.1:{port}/?replicaSet=rs0")
    assert f"MongoDB at 127.0.0.1:{port} does not answer" in told
    assert "refused" in told


@pytest.mark.parametrize(
    "url", ["mongodb://ann:s3cret@", "ann:s3cret@host", "mongodb://ann:s3cret/x@host:1", "mongodb://h/?tls=s3cret"]
)
async def test_what_is_no_url_is_one_clear_line(url: str) -> None:
    """The line names the setting."""
    assert "mongo_url" in await refusal(url)


async def test_wrong_credentials_are_one_clear_line(tmp_path: Path) -> None:
    """A wrong password, no user, and a user who may not write are each told as what they are."""
    server = MongoServer(tmp_path, user="ann", password="s3cret")
    await asyncio.to_thread(server.start)
    try:
        assert "refuses the credentials" in await refusal(server.url_as("ann", "s3cret-not"))
        assert "does not let this user do that" in await refusal(server.url_as(None))
        with server.client() as client:
            client.admin.command("createUser", "bob", pwd="s3cret", roles=[{"role": "read", "db": "gurney"}])
        assert "does not let this user do that" in await refusal(f"{server.url_as('bob', 's3cret')}&authSource=admin")
        async with opened(server.url, "gurney") as documents:
            await insert(documents, thing(1))
    finally:
        await asyncio.to_thread(server.stop)


async def test_an_index_that_cannot_be_made_is_one_clear_line(mongo_server: MongoServer, database: str) -> None:
    """Documents that hold a key twice are told with the collection, not with what they hold."""
    with mongo_server.client() as client:
        client[database]["things"].insert_many([{"_id": each, "keys": ["s3cret"]} for each in ("a", "b")])
    told = await refusal(mongo_server.url, database=database)
    assert "cannot make the indexes of things" in told
    assert "DuplicateKey" in told


async def test_a_document_that_is_too_large_harms_no_other(mongo_server: MongoServer, database: str) -> None:
    """It is refused by itself, before it is sent."""
    async with opened(mongo_server.url, database) as documents:
        large = thing(1, name="x" * 16 * 1024**2)
        first, second = await documents.cas([Write(THINGS, "t0001", 0, large), Write(THINGS, "t0002", 0, thing(2))])
        assert isinstance(first, TooLarge)
        assert second is None


async def test_many_large_documents_go_in_several_rounds(mongo_server: MongoServer, database: str) -> None:
    """A hundred documents of 448 KiB are written and read at once."""
    async with opened(mongo_server.url, database) as documents:
        await insert(documents, *(thing(number, name=f"{number}" + "x" * 448 * 1024) for number in range(100)))
        found = await asyncio.gather(*(documents.get(THINGS, f"t{number:04}") for number in range(100)))
        assert [each.id for each in found if each] == [f"t{number:04}" for number in range(100)]


async def test_a_query_by_a_field_that_is_not_declared_is_a_mistake(mongo_server: MongoServer, database: str) -> None:
    """It is told at once, not answered with nothing."""
    async with opened(mongo_server.url, database) as documents:
        with pytest.raises(ValueError, match="queries of others name state"):
            await documents.find(OTHERS, Query((Where("state", "=", "new"),), sort=("id",)))


async def test_documents_can_be_read_by_people(mongo_server: MongoServer, database: str) -> None:
    """What is stored names its revision, the fields that queries use, and the body as JSON."""
    async with opened(mongo_server.url, database) as documents:
        await insert(documents, thing(1, name="head", labels={"a": "b"}))
    with mongo_server.client() as client:
        (stored,) = client[database]["things"].find()
    assert stored["fields"]["labels"] == ["a=b"]
    assert stored["keys"] == ["name:head"]
    assert json.loads(stored["body"])["revision"] == stored["revision"] == 1
