"""Queries of the port as SQL over columns and JSON bodies. Pure.

Fields of a collection's indexes are columns, named by their JSON path; all other fields are read from the body.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from gurney.clock import rfc3339
from gurney.documents.port import Collection, Query, Where


@dataclass(frozen=True, slots=True)
class Sql:
    """A statement and its values."""

    text: str
    values: tuple[Any, ...] = ()


@cache
def indexed(collection: Collection[Any]) -> tuple[str, ...]:
    """Return the fields that are columns."""
    return tuple(dict.fromkeys(field for index in collection.indexes for field in index if field != "id"))


def column(field: str) -> str:
    """Return a column's name, in brackets: where there is no such column, SQLite takes double quotes for a text."""
    return f"[$.{field}]"


def extracted(field: str, body: str = "body") -> str:
    return f"json_extract({body}, '$.{field}')"


def field_sql(collection: Collection[Any], field: str) -> str:
    if field == "id":
        return "id"
    return column(field) if field in indexed(collection) else extracted(field)


def where_sql(collection: Collection[Any], where: Sequence[Where]) -> Sql:
    """Return the conditions, joined by AND; all documents where there are none."""
    parts = [_condition(field_sql(collection, condition.field), condition) for condition in where]
    text = " AND ".join(part.text for part in parts) or "1"
    return Sql(text, tuple(value for part in parts for value in part.values))


def find_sql(collection: Collection[Any], query: Query) -> Sql:
    condition = where_sql(collection, query.where)
    fields = [field_sql(collection, field) for field in query.sort]
    direction, beyond = ("DESC", "<") if query.descending else ("ASC", ">")
    order = ", ".join(f"{field} {direction}" for field in fields)
    text, values = condition.text, condition.values
    if query.after is not None:  # first: of two bounds SQLite seeks by the first, and this is the narrower one
        text = f"({', '.join(fields)}) {beyond} ({', '.join('?' * len(fields))}) AND {text}"
        values = (*(_value(value) for value in query.after), *values)
    return Sql(
        f'SELECT body FROM "{collection.name}" WHERE {text} ORDER BY {order} LIMIT {int(query.limit)}',  # noqa: S608
        values,
    )


def totals_sql(collection: Collection[Any], where: Sequence[Where], field: str | None, by: str | None = None) -> Sql:
    """Return group (where there is `by`), count and sum."""
    condition = where_sql(collection, where)
    total = f"coalesce(sum({field_sql(collection, field)}), 0)" if field else "0"
    group, grouped = (f"{field_sql(collection, by)}, ", " GROUP BY 1") if by else ("", "")
    return Sql(
        f'SELECT {group}count(*), {total} FROM "{collection.name}" WHERE {condition.text}{grouped}',  # noqa: S608
        condition.values,
    )


def _condition(field: str, where: Where) -> Sql:
    value = where.value
    match where.op:
        case "=" if value is None:
            return Sql(f"{field} IS NULL")
        case "!=" if value is None:
            return Sql(f"{field} IS NOT NULL")
        case "=" | "!=" | ">" | ">=" | "<" | "<=":
            return Sql(f"{field} {where.op} ?", (_value(value),))
        case "in":
            values = tuple(_value(each) for each in value)
            return Sql(f"{field} IN ({', '.join('?' * len(values))})", values)
        case "prefix":
            return Sql(f"substr({field}, 1, ?) = ?", (len(value), value))
        case "label":
            key, wanted = value
            return Sql("EXISTS (SELECT 1 FROM json_each(body, '$.labels') WHERE key = ? AND value = ?)", (key, wanted))


def _value(value: Any) -> Any:
    return rfc3339(value) if isinstance(value, datetime) else value
