"""What queries and writes become in MongoDB, who lost, and how writes and look-ups of many callers go together."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gurney.documents.mongo_pump import FLIGHTS, ROUND_BYTES, ROUND_WRITES, Lookups, Pump
from gurney.documents.mongo_query import extracted, fields_of, filter_of, find_of, indexes_of, path_of
from gurney.documents.mongo_write import Again, Found, in_order, judge, update_of
from gurney.documents.port import Collection, Query, Where, Write
from gurney.errors import GurneyError, KeyTaken, RevisionConflict, StoreUnavailable
from gurney.model.base import Labels, Message, Owned
from gurney.model.event import Event

T0 = datetime(2026, 1, 1, tzinfo=UTC)


class Part(Message):
    key: str


class Thing(Owned):
    name: str | None = None
    part: Part | None = None
    labels: Labels = {}

    def unique_keys(self) -> tuple[str, ...]:
        return (f"name:{self.name}",) if self.name else ()


THINGS = Collection(
    "things", Thing, (("created_at",),), filters=(("labels", "created_at"),), fields=("part.key", "name")
)


def a_thing(**fields: Any) -> Thing:
    return Thing(id="t1", created_at=T0).but(**fields)


def a_write(expected: int = 1, document: Thing | None = None) -> Write:
    return Write(THINGS, "t1", expected, document)


# --- queries ---


def test_a_collection_has_an_index_for_each_that_it_declares() -> None:
    """Indexes and filters end with the id; keys, events and removed documents have an index of their own."""
    made = {index.name: index.keys for index in indexes_of(THINGS)}
    assert made["created_at"] == (("fields.created_at", 1), ("_id", 1))
    assert made["labels,created_at"] == (("fields.labels", 1), ("fields.created_at", 1), ("_id", 1))
    assert made.keys() == {"keys", "events", "gone", "created_at", "labels,created_at"}
    assert [index.name for index in indexes_of(THINGS) if index.unique] == ["keys"]


def test_fields_are_taken_from_the_document_and_its_parts() -> None:
    """What is missing is null, and null in a part that is missing, so that conditions find it."""
    assert fields_of(THINGS) == ("created_at", "labels", "part.key", "name")
    empty: dict[str, Any] = {
        "created_at": "2026-01-01T00:00:00.000000Z",
        "labels": [],
        "part": {"key": None},
        "name": None,
    }
    assert extracted(THINGS, a_thing()) == empty
    full = a_thing(part=Part(key="k"), labels={"a.b": "$c", "d": ""})
    assert extracted(THINGS, full) == empty | {"labels": ["a.b=$c", "d="], "part": {"key": "k"}}


def test_a_field_that_is_not_declared_is_refused() -> None:
    """The mistake is its owner's, and named."""
    assert path_of(THINGS, "id") == "_id"
    with pytest.raises(ValueError, match="things name project"):
        filter_of(THINGS, [Where("project", "=", "p")])


@given(st.text(max_size=4), st.text(max_size=6))
def test_the_range_of_a_prefix_holds_what_starts_with_it(prefix: str, text: str) -> None:
    """Bounds of an index scan are exact, whatever characters there are."""
    bounds = filter_of(THINGS, [Where("name", "prefix", prefix)])["$and"][1]["fields.name"]
    for candidate in (text, prefix + text):
        within = bounds["$gte"] <= candidate and ("$lt" not in bounds or candidate < bounds["$lt"])
        assert within == candidate.startswith(prefix)


def matches(row: Mapping[str, str], wanted: Mapping[str, Any]) -> bool:
    """Say whether MongoDB would find a row by what a keyset makes of it."""
    compare = {
        "$lt": lambda a, b: a < b,
        "$lte": lambda a, b: a <= b,
        "$gt": lambda a, b: a > b,
        "$gte": lambda a, b: a >= b,
    }
    for field, condition in wanted.items():
        if field == "$or":
            held = any(matches(row, each) for each in condition)
        elif isinstance(condition, dict):
            held = all(compare[operator](row[field], value) for operator, value in condition.items())
        else:
            held = row[field] == condition
        if not held:
            return False
    return True


letters = st.sampled_from("abc")


@given(
    st.tuples(letters, letters, letters),
    st.tuples(letters, letters, letters),
    st.sampled_from(["down", "up"]),
    st.integers(1, 3),
)
def test_a_keyset_is_what_comes_after(row: tuple[str, ...], last: tuple[str, ...], direction: str, depth: int) -> None:
    """Of the rows in order, exactly those after the last one seen are found."""
    sort, descending = ("created_at", "name", "id")[:depth], direction == "down"
    query = Query(sort=sort, descending=descending, after=last[:depth])
    wanted, order = find_of(THINGS, query)
    found = {path: value for (path, _), value in zip(order, row, strict=False)}
    after = row[:depth] < last[:depth] if descending else row[:depth] > last[:depth]
    assert all(matches(found, condition) for condition in wanted["$and"][1:]) == after


# --- writes ---


def test_an_update_clears_what_the_document_no_longer_has() -> None:
    """A document without keys holds none; one that comes back is no tombstone; a removed one keeps its events."""
    named = update_of(a_write(1, a_thing(name="a")), "{}", "m", 1.0)
    assert named["q"] == {"_id": "t1", "revision": 1}
    assert named["u"]["$set"]["keys"] == ["name:a"]
    assert named["u"]["$unset"].keys() == {"gone"}
    assert update_of(a_write(1, a_thing()), "{}", "m", 1.0)["u"]["$unset"].keys() == {"gone", "keys"}
    removed = update_of(a_write(1), None, "m", 1.0)["u"]
    assert removed["$set"] == {"revision": 0, "gone": 1.0}
    assert removed["$unset"].keys() == {"body", "fields", "keys"}


def test_a_mark_tells_who_held() -> None:
    """Whatever the revision is now, a document with the mark bears witness; without it, only the revision counts."""
    write = a_write(1, a_thing(name="a").next())
    assert judge(write, "m", Found(5, ["x", "m", "y"]), {"name:a": "t2"}) is None
    assert isinstance(judge(write, "m", Found(2, ["x"]), {}), RevisionConflict)
    assert isinstance(judge(write, "m", None, {}), RevisionConflict)


def test_a_key_that_another_holds_is_told() -> None:
    """Where the revision is as expected, a key was in the way; one's own key is in nobody's way."""
    write = a_write(1, a_thing(name="a").next())
    taken = judge(write, "m", Found(1, []), {"name:a": "t2"})
    assert isinstance(taken, KeyTaken)
    assert taken.holder == "t2"
    assert judge(write, "m", Found(1, []), {"name:a": "t1"}) == Again(insert=False)


def test_what_finds_nothing_in_its_way_tries_again() -> None:
    """Over a tombstone by an update, else by an insert."""
    write = a_write(0, a_thing(name="a"))
    assert judge(write, "m", Found(0, []), {}) == Again(insert=False)
    assert judge(write, "m", None, {}) == Again(insert=True)


def test_events_come_in_the_order_of_writing() -> None:
    """Of documents that come by their first event, those are told that no other document's can precede."""

    def stored(*times: float) -> dict[str, Any]:
        events = [Event(id=f"e{at}", subject="s", source="t", at=T0, body="{}") for at in times]
        return {
            "events": [
                {"id": e.id, "at": at, "event": e.model_dump_json()} for e, at in zip(events, times, strict=True)
            ]
        }

    documents = [stored(1.0, 4.0), stored(2.0, 9.0), stored(3.0)]
    assert [each.id for each in in_order(documents, 8.0, cut=False)] == ["e1.0", "e2.0", "e3.0", "e4.0"]
    assert [each.id for each in in_order(documents, 8.0, cut=True)] == ["e1.0", "e2.0", "e3.0"]
    assert in_order([], 8.0, cut=False) == []


# --- the pump ---


@dataclass(frozen=True)
class Line:
    id: str
    size: int = 1


class Sending:
    """Takes rounds and lets them go one by one."""

    def __init__(self) -> None:
        self.rounds: list[list[Line]] = []
        self._gates: list[asyncio.Future[None]] = []
        self.under_way = 0

    async def __call__(self, round_: list[Line]) -> list[GurneyError | None]:
        self.rounds.append(round_)
        gate = asyncio.get_running_loop().create_future()
        self._gates.append(gate)
        self.under_way += 1
        assert self.under_way <= FLIGHTS
        await gate
        self.under_way -= 1
        return [RevisionConflict(line.id) if line.id == "bad" else None for line in round_]

    async def go(self) -> None:
        """Let the oldest round go and return when what follows has begun."""
        self._gates.pop(0).set_result(None)
        for _ in range(5):
            await asyncio.sleep(0)


async def test_writes_of_one_turn_go_together_and_those_that_come_meanwhile_wait() -> None:
    """At most two rounds are under way; each takes all that waits."""
    sending = Sending()
    pump = Pump(sending)
    calls = []
    for batch in range(4):
        calls += [asyncio.create_task(pump.write([Line(f"{batch}.{n}")])) for n in range(10)]
        for _ in range(5):
            await asyncio.sleep(0)
    assert [len(each) for each in sending.rounds] == [10, 10]
    await sending.go()
    assert [len(each) for each in sending.rounds] == [10, 10, 20]
    await sending.go()
    await sending.go()
    assert await asyncio.gather(*calls) == [[None]] * 40
    await pump.drained()


async def test_writes_to_one_document_follow_each_other() -> None:
    """A call's second write to a document, and all that come after it, leave when the first is answered."""
    sending = Sending()
    pump = Pump(sending)
    call = asyncio.create_task(pump.write([Line("a"), Line("bad"), Line("a"), Line("c")]))
    other = asyncio.create_task(pump.write([Line("d")]))
    for _ in range(5):
        await asyncio.sleep(0)
    assert [line.id for line in sending.rounds[0]] == ["a", "bad"]
    await sending.go()
    while sending.under_way:
        await sending.go()
    assert sorted(line.id for each in sending.rounds[1:] for line in each) == ["a", "c", "d"]
    results = await call
    assert [type(each) for each in results] == [type(None), RevisionConflict, type(None), type(None)]
    assert await other == [None]


@given(st.lists(st.integers(1, ROUND_BYTES * 2), min_size=1, max_size=12))
async def test_rounds_have_bounds(sizes: Sequence[int]) -> None:
    """No round is larger than a command may be, except for one write alone."""
    rounds: list[list[Line]] = []

    async def send(round_: list[Line]) -> list[GurneyError | None]:
        rounds.append(round_)
        return [None] * len(round_)

    lines = [Line(f"{number}", size) for number, size in enumerate(sizes)]
    assert await Pump(send).write(lines) == [None] * len(lines)
    assert [line for each in rounds for line in each] == lines
    assert all(len(each) == 1 or sum(line.size for line in each) <= ROUND_BYTES for each in rounds)
    assert await Pump(send).write([Line(f"{n}") for n in range(ROUND_WRITES + 1)]) == [None] * (ROUND_WRITES + 1)
    assert [len(each) for each in rounds[-2:]] == [ROUND_WRITES, 1]


async def test_a_mistake_of_the_sender_reaches_the_callers_and_no_others() -> None:
    """Whoever was in that round gets it; the next round goes as if nothing was."""

    async def send(round_: list[Line]) -> list[GurneyError | None]:
        if any(line.id == "bad" for line in round_):
            raise ZeroDivisionError
        return [None] * len(round_)

    pump = Pump(send)
    with pytest.raises(ZeroDivisionError):
        await pump.write([Line("bad"), Line("bad")])
    assert await pump.write([Line("good")]) == [None]


async def test_look_ups_of_one_turn_are_one_question() -> None:
    """Who asks for the same gets the same; a fault reaches all who asked; who leaves takes nobody along."""
    asked: list[list[str]] = []

    async def fetch(keys: list[str]) -> Mapping[str, str]:
        asked.append(keys)
        await asyncio.sleep(0)
        if "down" in keys:
            raise StoreUnavailable("away")
        return {key: key.upper() for key in keys if key != "no"}

    lookups = Lookups(fetch)
    leaving = asyncio.create_task(lookups.ask("b"))
    asking = asyncio.gather(*(lookups.ask(key) for key in ("a", "b", "b", "no")))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await asking == ["A", "B", "B", None]
    assert [sorted(keys) for keys in asked] == [["a", "b", "no"]]
    results = await asyncio.gather(lookups.ask("down"), lookups.ask("x"), return_exceptions=True)
    assert [type(each) for each in results] == [StoreUnavailable] * 2
    assert await lookups.ask("x") == "X"
