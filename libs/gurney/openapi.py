"""What OpenAPI documents (3.1) of routes have in common: their parameters."""

import re
from typing import Any

Json = dict[str, Any]

_PART = re.compile(r"\{(\w+)(?::[^}]*)?\}")


def path(template: str) -> str:
    """Return a path as documents have it: aiohttp's parts without their patterns."""
    return _PART.sub(r"{\1}", template)


def path_parameters(template: str) -> list[Json]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in _PART.findall(template)
    ]


def given(schema: Json) -> Json:
    """Return the schema of a parameter that is given: there is no null in a query."""
    kept = {key: value for key, value in schema.items() if key not in {"anyOf", "title"} and value is not None}
    for choice in schema.get("anyOf", ()):
        if choice != {"type": "null"}:
            kept |= choice
    return kept
