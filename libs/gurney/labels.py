"""Labels: at most 64 of them, keys of 1 to 63 and values of at most 255 characters."""

from collections.abc import Mapping

from gurney.errors import Invalid
from gurney.model.base import Labels

MAX_LABELS, MAX_KEY, MAX_VALUE = 64, 63, 255


def check_labels(labels: Mapping[str, str], field: str = "labels") -> Labels:
    """Return the labels; raises `Invalid` that names the limit."""
    if len(labels) > MAX_LABELS:
        raise Invalid.field(field, f"has {len(labels)} labels, at most {MAX_LABELS} are allowed")
    for key, value in labels.items():
        if not 1 <= len(key) <= MAX_KEY or "=" in key or not key.isprintable():
            raise Invalid.field(field, f"key {key!r}: 1 to {MAX_KEY} printable characters without '=' are allowed")
        if len(value) > MAX_VALUE or not value.isprintable():
            raise Invalid.field(field, f"value of {key!r}: at most {MAX_VALUE} printable characters are allowed")
    return dict(labels)
