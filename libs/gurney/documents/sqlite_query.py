"""Queries of the port as SQL over JSON bodies. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gurney.clock import rfc3339
from gurney.documents.port import Query, Where


@dataclass(frozen=True, slots=True)
class Sql:
    """A statement and its values."""

    text: str
    values: tuple[Any, ...] = ()


def field_sql(field: str) -> str:
    """Return the expression of a field; the same text in indexes and queries, or the index is not used."""
    return "id" if field == "id" else f"json_extract(body, '$.{field}')"


def where_sql(where: Sequence[Where]) -> Sql:
    """Return the conditions, joined by AND; all documents where there are none."""
    parts = [_condition(condition) for condition in where]
    text = " AND ".join(part.text for part in parts) or "1"
    return Sql(text, tuple(value for part in parts for value in part.values))


def find_sql(table: str, query: Query) -> Sql:
    condition = where_sql(query.where)
    columns = ", ".join(field_sql(field) for field in query.sort)
    direction, beyond = ("DESC", "<") if query.descending else ("ASC", ">")
    order = ", ".join(f"{field_sql(field)} {direction}" for field in query.sort)
    text, values = condition.text, condition.values
    if query.after is not None:
        text += f" AND ({columns}) {beyond} ({', '.join('?' * len(query.sort))})"
        values += tuple(_value(value) for value in query.after)
    return Sql(f'SELECT body FROM "{table}" WHERE {text} ORDER BY {order} LIMIT {int(query.limit)}', values)  # noqa: S608


def _condition(where: Where) -> Sql:
    field, value = field_sql(where.field), where.value
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
