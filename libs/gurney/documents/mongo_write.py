"""What a write of the port becomes in MongoDB, and what became of it. Pure.

Each write carries a mark, which it leaves in the document. A write whose fate is not known is sent again: it cannot
hold twice, since the revision has moved on, and a document that bears its mark says that it held. A removed document
stays as a tombstone at revision 0 for a while: it keeps events that are not settled, and the mark of who removed it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gurney.documents.mongo_query import extracted
from gurney.documents.port import Write
from gurney.errors import GurneyError, KeyTaken, RevisionConflict
from gurney.model.event import Event

#: Marks that a document keeps: of this many writes after a lost answer, the writer still finds his own.
MARKS = 8


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a stored document."""

    revision: int
    marks: Sequence[str]


@dataclass(frozen=True, slots=True)
class Again:
    """Whatever was in the way is gone. `insert`: there is not even a tombstone."""

    insert: bool


Verdict = GurneyError | Again | None


def insert_of(write: Write, body: str | None, mark: str, at: float) -> dict[str, Any]:
    """Return the document to insert."""
    return {"_id": write.id, **_held(write, body, at), "marks": [mark], **_events(write, at)}


def update_of(write: Write, body: str | None, mark: str, at: float) -> dict[str, Any]:
    """Return the statement of an `update` command that writes over the expected revision, or over a tombstone."""
    held = _held(write, body, at)
    change: dict[str, Any] = {"$set": held, "$push": {"marks": {"$each": [mark], "$slice": -MARKS}}}
    if events := _events(write, at):
        change["$push"]["events"] = {"$each": events["events"]}
    if cleared := {"body", "fields", "keys", "gone"} - held.keys():
        change["$unset"] = dict.fromkeys(sorted(cleared), "")
    return {"q": {"_id": write.id, "revision": write.expected}, "u": change}


def settle_of(document_id: str, event_ids: Sequence[str]) -> dict[str, Any]:
    """Return the statement that forgets events."""
    return {"q": {"_id": document_id}, "u": {"$pull": {"events": {"id": {"$in": list(event_ids)}}}}}


def keys_of(write: Write) -> tuple[str, ...]:
    return write.document.unique_keys() if write.document else ()


def judge(write: Write, mark: str, found: Found | None, holders: Mapping[str, str]) -> Verdict:
    """Return what became of a write that may not have held; `holders` are the documents that hold its keys."""
    revision = found.revision if found else 0
    if found and mark in found.marks:
        return None
    if revision != write.expected:
        table = write.collection.name
        return RevisionConflict(f"{table} {write.id} is at revision {revision}, not {write.expected}")
    for key in keys_of(write):
        if holders.get(key, write.id) != write.id:
            return KeyTaken(key, holders[key])
    return Again(insert=found is None)


def in_order(documents: Sequence[Mapping[str, Any]], before: float, *, cut: bool) -> list[Event]:
    """Return the events of documents that come by their first one. `cut`: there are more documents than these."""
    if cut:
        before = min(before, documents[-1]["events"][0]["at"])
    found = [event for document in documents for event in document["events"] if event["at"] <= before]
    return [Event.decode(event["event"]) for event in sorted(found, key=lambda event: float(event["at"]))]


def _held(write: Write, body: str | None, at: float) -> dict[str, Any]:
    if write.document is None:
        return {"revision": 0, "gone": at}
    held: dict[str, Any] = {"revision": write.document.revision, "body": body}
    held["fields"] = extracted(write.collection, write.document)
    if keys := sorted(set(keys_of(write))):  # an empty list would be a key, too
        held["keys"] = keys
    return held


def _events(write: Write, at: float) -> dict[str, Any]:
    events = [{"id": event.id, "at": at, "event": event.model_dump_json()} for event in write.events]
    return {"events": events} if events else {}
