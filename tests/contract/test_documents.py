"""The contract of the port `documents`, over every adapter."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gurney import ids
from gurney.documents.mongo import MongoDocuments
from gurney.documents.port import Documents, Query, Where, Write
from gurney.documents.sqlite import SqliteDocuments
from gurney.errors import KeyTaken, RevisionConflict, StoreUnavailable
from gurney.model.base import MAX_LABEL_VALUE
from gurney.testing.mongo import MongoServer
from tests.contract.things import OTHERS, START, THINGS, Thing, event, insert, thing


@pytest.fixture(params=["sqlite", pytest.param("mongo", marks=pytest.mark.needs("mongo"))])
def make(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Documents]]:
    """What opens a database of each adapter by name, the same one for the same name."""
    if request.param == "sqlite":
        folder = tmp_path_factory.mktemp("documents")
        yield lambda name: SqliteDocuments(folder / f"{name}.sqlite")
        return
    server: MongoServer = request.getfixturevalue("mongo_server")
    prefix, made = ids.new_id("ins"), set[str]()

    def mongo(name: str) -> Documents:
        made.add(f"{prefix}_{name}")
        return MongoDocuments(server.url, f"{prefix}_{name}")

    yield mongo
    for each in made:
        server.drop(each)


@pytest.fixture
async def documents(make: Callable[[str], Documents]) -> AsyncIterator[Documents]:
    """An open, empty database of each adapter."""
    opened = make("one")
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


async def test_a_changed_document_is_found_by_what_it_says_now(documents: Documents) -> None:
    """Conditions and order follow each change, and a removed document is not found."""
    await insert(documents, thing(1), thing(2))
    moved = thing(1).next(state="old", created_at=START + timedelta(seconds=9))
    assert await documents.cas([Write(THINGS, "t0001", 1, moved)]) == [None]
    assert [each.id for each in await documents.find(THINGS, Query((Where("state", "=", "new"),)))] == ["t0002"]
    assert await documents.find(THINGS, Query((Where("state", "=", "old"),))) == [moved]
    assert [each.id for each in await documents.find(THINGS, Query())] == ["t0001", "t0002"]
    assert await documents.cas([Write(THINGS, "t0001", 2, None)]) == [None]
    assert await documents.find(THINGS, Query((Where("state", "=", "old"),))) == []


async def test_what_is_null_is_neither_equal_nor_unequal_nor_less_nor_more(documents: Documents) -> None:
    """A comparison with a value leaves out documents whose field is null; so does a list of values."""
    await insert(documents, thing(1, name="a"), thing(2), thing(3, name="c"))
    for operator, value, ids_ in [("!=", "a", ["t0003"]), ("<", "z", ["t0001", "t0003"]), (">=", "b", ["t0003"])]:
        found = await documents.find(THINGS, Query((Where("name", operator, value),), descending=False))  # type: ignore[arg-type]
        assert [each.id for each in found] == ids_
    assert await documents.find(THINGS, Query((Where("name", "in", []),))) == []


async def test_any_text_is_kept_and_found(documents: Documents) -> None:
    """Keys and values of labels may hold dots, dollars, anything in Unicode; a document may have 448 KiB."""
    labels = {"$ref": "a", "$id": "b", "a.b": "$c", "é𝄞": "ü" * MAX_LABEL_VALUE, "$": "", ".": ".", "x y": "\U0010ffff"}
    large = thing(2, name="ж" * 224 * 1024, labels={"n": "\ud7ff\ue000"})
    await insert(documents, thing(1, name="\0$a.b", labels=labels), large)
    assert await documents.get(THINGS, "t0001") == thing(1, name="\0$a.b", labels=labels)
    assert await documents.get(THINGS, "t0002") == large
    for label in labels.items():
        assert [each.id for each in await documents.find(THINGS, Query((Where("labels", "label", label),)))] == [
            "t0001"
        ]
    assert await documents.find(THINGS, Query((Where("labels", "label", ("a", "b=$c")),))) == []
    assert await documents.by_key(THINGS, "name:\0$a.b") is not None
    assert [each.id for each in await documents.find(THINGS, Query((Where("name", "prefix", "жж"),)))] == ["t0002"]


async def test_times_count_in_microseconds(documents: Documents) -> None:
    """Times that differ by a microsecond come back so, and are compared and sorted so."""
    times = [START + timedelta(microseconds=each) for each in (0, 1, 999_999, 1_000_000)]
    await insert(documents, *(thing(n).but(created_at=at) for n, at in enumerate(times)))
    assert [each.created_at for each in await documents.find(THINGS, Query(descending=False))] == times
    later = await documents.find(
        THINGS, Query((Where("created_at", ">", times[0]), Where("created_at", "<", times[3])))
    )
    assert [each.id for each in later] == ["t0002", "t0001"]


async def test_what_was_removed_is_nowhere_and_may_come_again(documents: Documents) -> None:
    """A removed document is not read, found or counted; its id may be taken again, and its events are still told."""
    await insert(documents, thing(1, size=5), events=(event(1),))
    assert await documents.cas([Write(THINGS, "t0001", 1, None, (event(2),))]) == [None]
    assert await documents.get(THINGS, "t0001") is None
    assert await documents.get_many(THINGS, ["t0001"]) == []
    assert await documents.find(THINGS, Query()) == []
    assert await documents.find(THINGS, Query((Where("name", "=", None),))) == []
    assert await documents.totals(THINGS, [], "size") == (0, 0)
    (again,) = await documents.cas([Write(THINGS, "t0001", 1, None)])
    assert isinstance(again, RevisionConflict)
    await insert(documents, thing(1, size=6), events=(event(3),))
    (twice,) = await documents.cas([Write(THINGS, "t0001", 0, thing(1))])
    assert isinstance(twice, RevisionConflict)
    assert [each.size for each in await documents.find(THINGS, Query())] == [6]
    assert [each.id for each in await documents.unpublished(THINGS, 0)] == ["evt_1", "evt_2", "evt_3"]


async def test_writes_of_one_call_are_tried_in_their_order(documents: Documents) -> None:
    """A later write of a call sees what the earlier ones did, to its document and to keys."""
    head = thing(1, name="head")
    writes = [
        Write(THINGS, "t0001", 0, head),
        Write(THINGS, "t0001", 1, head.next(name="neck")),
        Write(THINGS, "t0002", 0, thing(2, name="head")),
        Write(THINGS, "t0001", 2, None),
        Write(THINGS, "t0003", 0, thing(3, name="neck")),
        Write(OTHERS, "t0003", 0, thing(3)),
    ]
    assert await documents.cas(writes) == [None] * 6
    assert await documents.cas([]) == []


async def test_events_are_found_in_the_order_of_writing(documents: Documents) -> None:
    """Whichever document an event went with, it comes after all that were written before, a thousand at a time."""
    await insert(documents, *(thing(n) for n in range(10)))
    for round_ in range(12):
        for n in range(10):
            told = tuple(event(1000 * round_ + 10 * n + each) for each in range(10))
            after = thing(n).but(revision=round_ + 2)
            assert await documents.cas([Write(THINGS, after.id, round_ + 1, after, told)]) == [None]
    found = await documents.unpublished(THINGS, 0)
    assert [each.id for each in found] == [f"evt_{1000 * r + each}" for r in range(10) for each in range(100)]
    await documents.settle(THINGS, [each.id for each in found])
    assert [each.id for each in await documents.unpublished(THINGS, 0)][:1] == ["evt_10000"]


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
    assert await documents.totals_by(THINGS, "state", [], "size") == {"new": (2, 12), "old": (1, 11)}
    assert await documents.totals_by(THINGS, "name", [Where("size", ">", 5)]) == {None: (2, 0)}


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


async def test_what_was_answered_is_there_after_opening_again(make: Callable[[str], Documents]) -> None:
    """Documents, keys and events outlive the process that wrote them, without a close."""
    first = make("one")
    await first.open([THINGS])
    await insert(first, thing(1, name="head"), events=(event(1),))
    second = make("one")
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


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])  # each opens a database
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from(["put", "remove"])), max_size=30))
async def test_any_history_agrees_with_a_dictionary(
    make: Callable[[str], Documents], history: list[tuple[int, int, str]]
) -> None:
    """After any sequence of writes the database holds what a dictionary with the same rules holds."""
    documents = make(ids.new_id("ins"))
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
