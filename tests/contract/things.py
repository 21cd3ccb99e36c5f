"""Documents for the tests of the port `documents`."""

from datetime import UTC, datetime, timedelta

from gurney.documents.port import Collection, Documents, Write
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


THINGS = Collection(
    "things",
    Thing,
    (("created_at",), ("state", "created_at")),
    filters=(("labels", "created_at"),),
    fields=("name", "size"),
)
OTHERS = Collection("others", Thing, fields=("size",))


def thing(number: int, **fields: object) -> Thing:
    made = Thing(id=f"t{number:04}", created_at=START + timedelta(seconds=number))
    return made.but(**fields)


def event(number: int) -> Event:
    return Event(id=f"evt_{number}", subject=f"map.ready.t{number}", source="test", at=START, body="{}")


async def insert(documents: Documents, *things: Thing, events: tuple[Event, ...] = ()) -> None:
    assert await documents.cas([Write(THINGS, each.id, 0, each, events) for each in things]) == [None] * len(things)
