"""Keyset pages: newest first by (`created_at`, id), cut by bytes before `limit`, with opaque cursors."""

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from gurney.clock import rfc3339
from gurney.documents.port import Collection, Documents, Query, Where
from gurney.errors import Invalid
from gurney.model.base import Dated, Document
from gurney.model.common import Page

#: No message over NATS is larger than 512 KiB; a page leaves room for its envelope.
PAGE_BYTES = 448 * 1024

D = TypeVar("D", bound=Document)
W = TypeVar("W", bound="Dated")


def encode_cursor(*values: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None, size: int) -> tuple[str, ...] | None:
    """Return the values of a cursor; raises `Invalid` where it is none of ours."""
    if cursor is None:
        return None
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError as error:
        raise Invalid.field("cursor", "is not one that this server gave out") from error
    if not isinstance(values, list) or len(values) != size or not all(isinstance(v, str) for v in values):
        raise Invalid.field("cursor", "is not one that this server gave out")
    return tuple(values)


def cut(items: Sequence[D], limit: int) -> tuple[list[D], bool]:
    """Return the items that fit into one page, and whether more were there."""
    kept: list[D] = []
    total = 0
    for item in items[:limit]:
        total += len(item.model_dump_json())
        if kept and total > PAGE_BYTES:
            break
        kept.append(item)
    return kept, len(kept) < len(items)


async def newest_first(
    documents: Documents,
    collection: Collection[W],
    where: Sequence[Where],
    limit: int,
    cursor: str | None,
    *,
    slim: Callable[[W], W] = lambda document: document,
) -> Page[W]:
    """Return a page of documents, newest first; `slim` takes off what lists leave out."""
    query = Query(tuple(where), limit=limit + 1, after=decode_cursor(cursor, 2))
    kept, more = cut([slim(document) for document in await documents.find(collection, query)], limit)
    following = encode_cursor(rfc3339(kept[-1].created_at), kept[-1].id) if more else None
    return Page(items=tuple(kept), next_cursor=following)


def scope_where(project: str | None, author: str | None) -> list[Where]:
    """Return the conditions of `Caller.scope()`."""
    return [Where(name, "=", value) for name, value in (("project", project), ("created_by", author)) if value]


def given(**conditions: tuple[str, str, Any]) -> list[Where]:
    """Return a condition (field, operator, value) for each whose value is given."""
    return [Where(field, op, value) for field, op, value in conditions.values() if value is not None]  # type: ignore[arg-type]


def label_where(labels: Sequence[tuple[str, str]]) -> list[Where]:
    return [Where("labels", "label", label) for label in labels]
