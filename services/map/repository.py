"""The collection `maps` and its queries."""

from collections.abc import Sequence
from unicodedata import normalize

from gurney.documents.port import Collection, Where
from gurney.errors import NotFound
from gurney.ids import is_id
from gurney.model.access import Caller, Role
from gurney.model.common import Page
from gurney.model.map import Map, MapList, MapState
from gurney.paging import given, label_where, newest_first
from gurney.store import Store
from services.map import machine, urn

MAPS = Collection(
    "maps",
    Map,
    (("created_at",), ("project", "created_at"), ("state", "created_at"), ("urn", "created_at")),
    filters=(("name", "created_at"), ("labels", "created_at")),
    fields=("digest", "content.digest"),
)

#: MAPs of dry runs: nobody sees them, and none stays.
TRIALS = Collection("map_trials", Map, (("created_at",), ("state", "created_at")))


def sees(caller: Caller, document: Map) -> bool:
    """Tell whether a MAP exists for a caller: MAPs are for everybody in their project."""
    return caller.role is Role.ADMINISTRATOR or caller.project == document.project


async def resolve(store: Store, caller: Caller | None, ref: str) -> Map:
    """Return a MAP by id, or by its name in the caller's project; raises `NotFound`."""
    if is_id(ref, "map"):
        found = await store.documents.get(MAPS, ref)
    elif caller:
        found = await store.documents.by_key(MAPS, f"name:{caller.project}:{normalize('NFC', ref)}")
    else:
        found = None
    if found is None or (caller and not sees(caller, found)):
        raise NotFound(f"there is no MAP {ref}")
    return found


async def page(store: Store, question: MapList) -> Page[Map]:
    caller = question.caller
    project = None if caller.role is Role.ADMINISTRATOR else caller.project
    where = given(
        project=("project", "=", project),
        name=("name", "=", question.name and normalize("NFC", question.name)),
        state=("state", "=", question.state),
        urn=("urn", "=", question.urn),
        after=("created_at", ">=", question.created_after),
        before=("created_at", "<", question.created_before),
    )
    if question.state is None:
        where.append(Where("state", "!=", MapState.UNREGISTERED))
    where += label_where(question.labels)
    documents = store.documents
    return await newest_first(
        documents, MAPS, where, question.limit, question.cursor, slim=lambda each: each.but(manifests=())
    )


async def registering(store: Store, collection: Collection[Map]) -> list[Map]:
    return await store.find(collection, Where("state", "=", MapState.REGISTERING))


async def needed(store: Store, digests: Sequence[str]) -> set[str]:
    """Return which of these digests MAPs have that may run, in themselves or in what they bring along.

    All, while a folder has not been read: a node may have its copy, and the document has not its digest. This comes
    first: what is read by then is found by what follows.
    """
    may_run = Where("state", "in", tuple(sorted(machine.MAY_RUN)))
    unread, _ = await store.documents.totals(
        MAPS, (may_run, Where("digest", "=", None), Where("urn", "prefix", urn.FOLDER))
    )
    if unread:
        return set(digests)
    found: set[str] = set()
    for field in ("digest", "content.digest"):
        found |= (await store.documents.totals_by(MAPS, field, (may_run, Where(field, "in", digests)))).keys()
    return found
