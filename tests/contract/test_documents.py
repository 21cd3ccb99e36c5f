"""The contract of the port `documents`, over every adapter."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gurney.documents.port import Collection, Documents, Query, Where, Write
from gurney.documents.sqlite import SqliteDocuments
from gurney.errors import KeyTaken, RevisionConflict, StoreUnavailable
from gurney.model.base import Labels, Owned
from gurney.model.event import Event

START = datetime(2026, 1, 1, tzinfo=UTC)


class Thing(Owned):
    """A document for these tests."""

    name: str | None = None
    size: int = 0
    state: str = "new"
    labels: Labels = {}

    def unique_keys(self) -> tuple[str, ...]:
        return (f"name:{self.name}",) if self.name else ()


THINGS = Collection("things", Thing, (("created_at",), ("state", "created_at")))
OTHERS = Collection("others", Thing)


def thing(number: int, **fields: object) -> Thing:
    made = Thing(id=f"t{number:04}", created_at=START + timedelta(seconds=number))
    return made.but(**fields)


def event(number: int) -> Event:
    return Event(id=f"evt_{number}", subject=f"map.ready.t{number}", source="test", at=START, body="{}")


async def insert(documents: Documents, *things: Thing, events: tuple[Event, ...] = ()) -> None:
    assert await documents.cas([Write(THINGS, each.id, 0, each, events) for each in things]) == [None] * len(things)


@pytest.fixture(params=["sqlite"])
async def documents(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Documents]:
    """An open, empty database of each adapter."""
    adapters = {"sqlite": lambda: SqliteDocuments(tmp_path / "documents.sqlite")}
    opened = adapters[request.param]()
    await opened.open([THINGS, OTHERS])
    yield opened
    await opened.close()


async def test_a_stored_document_is_read_as_it_was_written(documents: Documents) -> None:
    """What was written is read back equal; what was not is None."""
    written = thing(1, name="ä", size=3, labels={"a.b": "c", "d": ""})
    await insert(documents, written)
    assert await documents.get(THINGS, "t0001") == written
    assert await documents.get(OTHERS, "t0001") is None
    assert await documents.by_key(THINGS, "name:ä") == written
    assert await documents.get_many(THINGS, ["t0001", "t0002"]) == [written]


async def test_a_write_at_another_revision_changes_nothing(documents: Documents) -> None:
    """Compare-and-set refuses stale, missing and existing documents, and leaves them as they were."""
    first = thing(1)
    await insert(documents, first)
    second = first.next(size=2)
    results = await documents.cas(
        [
            Write(THINGS, "t0001", 0, thing(1, size=9)),
            Write(THINGS, "t0001", 1, second),
            Write(THINGS, "t0001", 1, first.next(size=8)),
            Write(THINGS, "t0007", 1, thing(7)),
            Write(THINGS, "t0001", 1, None),
        ]
    )
    assert [type(each) for each in results] == [
        RevisionConflict,
        type(None),
        RevisionConflict,
        RevisionConflict,
        RevisionConflict,
    ]
    assert await documents.get(THINGS, "t0001") == second
    assert await documents.get(THINGS, "t0007") is None


async def test_of_many_writers_at_one_revision_one_wins(documents: Documents) -> None:
    """Fifty concurrent replacements of one revision: one holds, the others conflict."""
    await insert(documents, thing(1))
    tries = [documents.cas([Write(THINGS, "t0001", 1, thing(1).next(size=size))]) for size in range(50)]
    results = [result for (result,) in await asyncio.gather(*tries)]
    winners = [size for size, result in enumerate(results) if result is None]
    assert len(winners) == 1
    stored = await documents.get(THINGS, "t0001")
    assert stored is not None
    assert stored.size == winners[0]


async def test_a_unique_key_has_one_holder(documents: Documents) -> None:
    """A taken key is refused with its holder's id; a key that was let go, by change or removal, is free again."""
    await insert(documents, thing(1, name="head"))
    (taken,) = await documents.cas([Write(THINGS, "t0002", 0, thing(2, name="head"))])
    assert isinstance(taken, KeyTaken)
    assert (taken.key, taken.holder) == ("name:head", "t0001")
    assert await documents.get(THINGS, "t0002") is None
    renamed = thing(1, name="head").next(name="neck")
    assert await documents.cas([Write(THINGS, "t0001", 1, renamed)]) == [None]
    await insert(documents, thing(2, name="head"))
    assert await documents.cas([Write(THINGS, "t0002", 1, None)]) == [None]
    await insert(documents, thing(3, name="head"))


async def test_of_concurrent_claims_of_a_key_one_wins(documents: Documents) -> None:
    """Twenty documents want one name at once: exactly one gets it."""
    tries = [documents.cas([Write(THINGS, f"t{n:04}", 0, thing(n, name="one"))]) for n in range(20)]
    results = [result for (result,) in await asyncio.gather(*tries)]
    assert sum(result is None for result in results) == 1
    assert sum(isinstance(result, KeyTaken) for result in results) == 19


async def test_keys_of_other_collections_do_not_clash(documents: Documents) -> None:
    """The same key may be held once in each collection."""
    await insert(documents, thing(1, name="head"))
    assert await documents.cas([Write(OTHERS, "t0001", 0, thing(1, name="head"))]) == [None]


async def test_conditions_combine(documents: Documents) -> None:
    """Each operator selects what it says, and all of them together select what meets all."""
    await insert(
        documents,
        thing(1, name="a", size=1, state="old", labels={"x": "1"}),
        thing(2, name="ab", size=2, labels={"x": "1", "y.z": "=2"}),
        thing(3, size=3, labels={"x": "2"}),
    )

    async def found(*where: Where) -> list[str]:
        return [each.id for each in await documents.find(THINGS, Query(where, descending=False))]

    assert await found() == ["t0001", "t0002", "t0003"]
    assert await found(Where("state", "=", "old")) == ["t0001"]
    assert await found(Where("state", "!=", "old")) == ["t0002", "t0003"]
    assert await found(Where("name", "=", None)) == ["t0003"]
    assert await found(Where("name", "!=", None)) == ["t0001", "t0002"]
    assert await found(Where("name", "prefix", "ab")) == ["t0002"]
    assert await found(Where("id", "in", ("t0001", "t0003", "t0009"))) == ["t0001", "t0003"]
    assert await found(Where("size", ">", 1), Where("size", "<=", 2)) == ["t0002"]
    assert await found(Where("created_at", ">=", START + timedelta(seconds=2))) == ["t0002", "t0003"]
    assert await found(Where("created_at", "<", START + timedelta(seconds=2))) == ["t0001"]
    assert await found(Where("labels", "label", ("x", "1"))) == ["t0001", "t0002"]
    assert await found(Where("labels", "label", ("y.z", "=2")), Where("labels", "label", ("x", "1"))) == ["t0002"]


async def test_pages_by_key_show_everything_once(documents: Documents) -> None:
    """Paging by the last item's sort fields shows each document once, in order, whatever is added meanwhile."""
    await insert(documents, *(thing(number).but(created_at=START) for number in range(10)))
    seen: list[str] = []
    after: tuple[str, ...] | None = None
    while page := await documents.find(THINGS, Query(limit=3, after=after)):
        seen += [each.id for each in page]
        after = (page[-1].model_dump(mode="json")["created_at"], page[-1].id)
        await insert(documents, thing(100 + len(seen)))
    assert seen == [f"t{number:04}" for number in reversed(range(10))]


async def test_totals_count_and_sum(documents: Documents) -> None:
    """Totals are the number of matching documents and the sum of a field."""
    await insert(documents, thing(1, size=5), thing(2, size=7), thing(3, size=11, state="old"))
    assert await documents.totals(THINGS, [Where("state", "=", "new")], "size") == (2, 12)
    assert await documents.totals(THINGS, []) == (3, 0)
    assert await documents.totals(OTHERS, [], "size") == (0, 0)


async def test_events_stay_until_they_are_settled(documents: Documents) -> None:
    """Events of writes that held are found in their order until settled; those of refused writes never are."""
    await insert(documents, thing(1), events=(event(1), event(2)))
    await documents.cas([Write(THINGS, "t0001", 7, thing(1), (event(3),))])
    await documents.cas([Write(THINGS, "t0001", 1, None, (event(4),))])
    assert [each.id for each in await documents.unpublished(THINGS, 0)] == ["evt_1", "evt_2", "evt_4"]
    assert await documents.unpublished(OTHERS, 0) == []
    assert await documents.unpublished(THINGS, 3600) == []
    await documents.settle(THINGS, ["evt_1", "evt_4"])
    assert await documents.unpublished(THINGS, 0) == [event(2)]


async def test_two_owners_may_give_an_event_the_same_id(documents: Documents) -> None:
    """Ids that are derived from a job are the same with all who make them up: each owner's event is kept apart."""
    await insert(documents, thing(1), events=(event(1),))
    assert await documents.cas([Write(OTHERS, "t0001", 0, thing(1), (event(1),))]) == [None]
    await documents.settle(THINGS, ["evt_1"])
    assert await documents.unpublished(THINGS, 0) == []
    assert await documents.unpublished(OTHERS, 0) == [event(1)]


async def test_what_was_answered_is_there_after_opening_again(tmp_path: Path) -> None:
    """Documents, keys and events outlive the process that wrote them, without a close."""
    first = SqliteDocuments(tmp_path / "documents.sqlite")
    await first.open([THINGS])
    await insert(first, thing(1, name="head"), events=(event(1),))
    second = SqliteDocuments(tmp_path / "documents.sqlite")
    await second.open([THINGS])
    assert await second.by_key(THINGS, "name:head") == thing(1, name="head")
    assert await second.unpublished(THINGS, 0) == [event(1)]
    await first.close()
    await second.close()


async def test_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    """A database that cannot be made is one clear line."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="cannot open the documents"):
        await SqliteDocuments(tmp_path / "file" / "documents.sqlite").open([THINGS])


@settings(max_examples=25)  # each opens a database
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from(["put", "remove"])), max_size=30))
async def test_any_history_agrees_with_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[int, int, str]]
) -> None:
    """After any sequence of writes the database holds what a dictionary with the same rules holds."""
    documents = SqliteDocuments(tmp_path_factory.mktemp("documents") / "d.sqlite", sync="normal")
    await documents.open([THINGS])
    model: dict[str, Thing] = {}
    for number, expected, kind in history:
        id_ = f"t{number:04}"
        after = thing(number).but(revision=expected + 1) if kind == "put" else None
        (fault,) = await documents.cas([Write(THINGS, id_, expected, after)])
        held = model[id_].revision if id_ in model else 0
        assert (fault is None) == (held == expected)
        if fault is None and after:
            model[id_] = after
        elif fault is None:
            model.pop(id_, None)
    stored = await documents.find(THINGS, Query(sort=("id",), descending=False))
    assert stored == [model[key] for key in sorted(model)]
    await documents.close()
