"""Queries of the port as MongoDB's filters, sorts, pipelines and indexes. Pure.

A stored document is `_id`, `revision` (0: removed, kept for its events), `body` (JSON), `fields` (what queries name),
`keys` (unique), `events` (not settled), `marks` (of its last writes), `gone` (when it was removed).
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import cache
from typing import Any

from gurney.clock import rfc3339
from gurney.documents.port import Collection, Query, Where
from gurney.model.base import Document

Filter = dict[str, Any]

LABELS = "labels"
SURROGATES, AFTER_SURROGATES = "\ud800", "\ue000"
#: What is removed is no document any more.
THERE: Filter = {"revision": {"$gt": 0}}


@dataclass(frozen=True, slots=True)
class Index:
    """An index by its name."""

    name: str
    keys: tuple[tuple[str, int], ...]
    unique: bool = False
    sparse: bool = False


#: Every collection's: whose documents hold unique keys, unsettled events, or are removed.
COMMON_INDEXES = (
    Index("keys", (("keys", 1),), unique=True, sparse=True),
    Index("events", (("events.at", 1),), sparse=True),
    Index("gone", (("gone", 1),), sparse=True),
)


def indexes_of(collection: Collection[Any]) -> list[Index]:
    """Return all indexes of a collection."""
    declared = (*collection.indexes, *collection.filters)
    named = {",".join(index): dict.fromkeys((*index, "id")) for index in declared}
    return [*COMMON_INDEXES, *(Index(name, tuple((_stored(f), 1) for f in fields)) for name, fields in named.items())]


@cache
def fields_of(collection: Collection[Any]) -> tuple[str, ...]:
    """Return the fields that are stored beside the body: those that indexes and queries name."""
    indexed = [field for index in (*collection.indexes, *collection.filters) for field in index]
    return tuple(field for field in dict.fromkeys((*indexed, *collection.fields)) if field != "id")


def extracted(collection: Collection[Any], document: Document) -> dict[str, Any]:
    """Return the values of these fields, nested as they are in the document."""
    found: dict[str, Any] = {}
    for field in fields_of(collection):
        *parents, last = field.split(".")
        place, value = found, document
        for name in parents:
            place = place.setdefault(name, {})
            value = getattr(value, name, None)  # type: ignore[assignment]  # a part of a document
        value = getattr(value, last, None)  # type: ignore[assignment]
        place[last] = [f"{key}={text}" for key, text in value.items()] if field == LABELS else _value(value)  # type: ignore[attr-defined]
    return found


def filter_of(collection: Collection[Any], where: Iterable[Where]) -> Filter:
    """Return the conditions, joined by AND."""
    return {"$and": [THERE, *(_condition(collection, condition) for condition in where)]}


def find_of(collection: Collection[Any], query: Query) -> tuple[Filter, list[tuple[str, int]]]:
    """Return filter and sort."""
    paths = [path_of(collection, field) for field in query.sort]
    wanted = filter_of(collection, query.where)
    if query.after is not None:
        wanted["$and"] += _beyond(paths, [_value(value) for value in query.after], "$lt" if query.descending else "$gt")
    return wanted, [(path, -1 if query.descending else 1) for path in paths]


def totals_of(
    collection: Collection[Any], where: Sequence[Where], field: str | None, by: str | None = None
) -> list[dict[str, Any]]:
    """Return the pipeline that gives a group (`_id`), `count` and `sum` for each value of `by`, or for all."""
    group: dict[str, Any] = {"_id": f"${path_of(collection, by)}" if by else None, "count": {"$sum": 1}}
    group["sum"] = {"$sum": f"${path_of(collection, field)}"} if field else {"$sum": 0}
    return [{"$match": filter_of(collection, where)}, {"$group": group}]


def path_of(collection: Collection[Any], field: str) -> str:
    """Return where a field is stored; a field that the collection does not declare is a mistake of its owner."""
    if field != "id" and field not in fields_of(collection):
        raise ValueError(f"queries of {collection.name} name {field}: it must be in an index, in filters or in fields")
    return _stored(field)


def _stored(field: str) -> str:
    return "_id" if field == "id" else f"fields.{field}"


def _beyond(paths: Sequence[str], last: Sequence[Any], operator: str) -> list[Filter]:
    """Return what comes after `last`; the first field's bound stands alone, too, where an index can use it."""
    if len(paths) == 1:
        return [{paths[0]: {operator: last[0]}}]
    steps = [
        {**dict(zip(paths[:depth], last[:depth], strict=True)), path: {operator: last[depth]}}
        for depth, path in enumerate(paths)
    ]
    return [{paths[0]: {f"{operator}e": last[0]}}, {"$or": steps}]


_COMPARING: Mapping[str, str] = {"=": "$eq", ">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte"}


def _condition(collection: Collection[Any], where: Where) -> Filter:
    path, value = path_of(collection, where.field), where.value
    match where.op:
        case "=" | ">" | ">=" | "<" | "<=":
            return {path: {_COMPARING[where.op]: _value(value)}}
        case "!=":  # null is neither equal nor unequal to a value
            return {path: {"$ne": None} if value is None else {"$nin": [_value(value), None]}}
        case "in":
            return {path: {"$in": [_value(each) for each in value if each is not None]}}
        case "prefix":
            return {path: _range_of(value)}
        case "label":
            key, wanted = value
            return {path: f"{key}={wanted}"}


def _range_of(prefix: str) -> Filter:
    """Return the range of the texts that start with `prefix`; MongoDB orders texts by code point, as Python does."""
    for end in range(len(prefix), 0, -1):
        following = _after(prefix[end - 1])
        if following:
            return {"$gte": prefix, "$lt": prefix[: end - 1] + following}
    return {"$gte": prefix}


def _after(character: str) -> str | None:
    """Return the next character; None after the last. Surrogates are no characters."""
    if character == chr(sys.maxunicode):
        return None
    following = chr(ord(character) + 1)
    return AFTER_SURROGATES if SURROGATES <= following < AFTER_SURROGATES else following


def _value(value: Any) -> Any:
    if isinstance(value, datetime):
        return rfc3339(value)
    return value.value if isinstance(value, Enum) else value
