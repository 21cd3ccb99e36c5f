"""The port `documents`: JSON documents with one owner each, changed by compare-and-set on `revision`.

Promises. A write and the events that go with it are one atom: a crash leaves both or neither. Two writes of one call
are two atoms. An answered write survives a crash of the process, and of the machine where the adapter is set to sync.
A write fails with `RevisionConflict` when the document is not at the expected revision, with `KeyTaken` when another
document of the collection holds one of its unique keys, with `StoreUnavailable` when nothing is known to be written.
Times compare as RFC 3339 texts. Documents handed out are frozen and may be shared.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from gurney.errors import GurneyError
from gurney.model.base import Document
from gurney.model.event import Event

D = TypeVar("D", bound=Document)


@dataclass(frozen=True)
class Collection(Generic[D]):
    """A kind of documents, its owner's alone."""

    name: str
    model: type[D]
    #: Field paths (dotted) of each index, in order. `id` ends each.
    indexes: tuple[tuple[str, ...], ...] = ()
    #: Further indexes, for what clients may filter by: had by a server, which holds more documents than a file should.
    filters: tuple[tuple[str, ...], ...] = ()
    #: Further fields that conditions name: a server may look only at those that are named here or in an index.
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Where:
    """One condition. `label`: value is (key, value) in the field `labels`. `=` with None: the field is null."""

    field: str
    op: Literal["=", "!=", "in", ">", ">=", "<", "<=", "prefix", "label"]
    value: Any


@dataclass(frozen=True, slots=True)
class Query:
    """Conditions combine by AND. `after` holds the sort fields of the last item seen (keyset paging)."""

    where: tuple[Where, ...] = ()
    sort: tuple[str, ...] = ("created_at", "id")
    descending: bool = True
    limit: int = 100
    after: tuple[Any, ...] | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """One compare-and-set. `expected` 0: the document must not be there; `document` None: remove it.

    `erase`: what is removed shall soon not be found in the database's own files either, where these are on this host.
    """

    collection: Collection[Any]
    id: str
    expected: int
    document: Document | None
    events: tuple[Event, ...] = ()
    erase: bool = False


class Documents(Protocol):
    """One database; every service uses its own collections only."""

    async def open(self, collections: Iterable[Collection[Any]]) -> None:
        """Make collections and indexes where missing; raises `StoreUnavailable` with one clear line."""

    async def close(self) -> None: ...

    async def get(self, collection: Collection[D], id: str) -> D | None:  # noqa: A002
        """Return the document, at least as new as any answered write."""

    async def get_many(self, collection: Collection[D], ids: Sequence[str]) -> list[D]:
        """Return those that are there, in no order."""

    async def by_key(self, collection: Collection[D], key: str) -> D | None:
        """Return the holder of a unique key."""

    async def find(self, collection: Collection[D], query: Query) -> list[D]:
        """Return up to `limit` documents, in order."""

    async def totals(
        self, collection: Collection[D], where: Sequence[Where], field: str | None = None
    ) -> tuple[int, int]:
        """Return how many documents match, and the sum of a number field over them (0 without a field)."""

    async def totals_by(
        self, collection: Collection[D], by: str, where: Sequence[Where], field: str | None = None
    ) -> dict[Any, tuple[int, int]]:
        """Return the `totals` of each group of documents that share a value of the field `by`; absent: no documents."""

    async def cas(self, writes: Sequence[Write]) -> list[GurneyError | None]:
        """Try each write; the answer says for each None or why not. Never raises for a single write's fault."""

    async def unpublished(self, collection: Collection[Any], older_than_s: float) -> list[Event]:
        """Return up to 1,000 events that were written with documents and not settled since, in the order of writing."""

    async def settle(self, collection: Collection[Any], event_ids: Sequence[str]) -> None:
        """Forget events that are published. May be lazy: a crash brings them back."""
