"""What people and machines see."""

import json
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from gurney.client.http import Json
from gurney.errors import Invalid

err = Console(stderr=True, highlight=False)
out = Console(highlight=False, soft_wrap=True)

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def show(value: Any, *, as_json: bool) -> None:
    """Print one object: JSON, or a line per field that has a value."""
    if as_json:
        print_json(value)
        return
    width = max((len(key) for key in value), default=0)
    for key, each in value.items():
        if each not in (None, [], {}, ""):
            text = each if isinstance(each, str) else json.dumps(each, ensure_ascii=False)
            out.print(f"{key.ljust(width)}  {text}", markup=False)


async def show_list(items: AsyncIterator[Json], columns: Sequence[str], *, as_json: bool) -> None:
    """Print a list: a JSON object a line, or a table."""
    if as_json:
        async for item in items:
            print_json(item)
        return
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "id")
    async for item in items:
        table.add_row(*(_cell(column, item.get(column)) for column in columns))
    (out if sys.stdout.isatty() else Console(width=240, highlight=False)).print(table)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def invalid(error: ValidationError) -> Invalid:
    """Return pydantic's findings as one line, by option."""
    found = error.errors(include_url=False, include_input=False)
    return Invalid("; ".join(f"{_option(each['loc'])}: {each['msg']}" for each in found))


def size(count: float) -> str:
    """Return bytes for people."""
    for unit in UNITS:
        if count < 1024 or unit == UNITS[-1]:  # noqa: PLR2004  # binary units
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return ""


def _option(loc: tuple[int | str, ...]) -> str:
    return ".".join(map(str, loc)).removesuffix("_s")  # the unit of a field


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if column.endswith("_at"):
        return f"{value[:19]}Z"  # whole seconds: a table is for people
    if isinstance(value, dict):
        return str(value.get("name") or value.get("id") or value.get("code") or json.dumps(value))
    return value if isinstance(value, str) else json.dumps(value)
