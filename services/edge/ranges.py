"""Conditional and range requests on one file (RFC 9110, 13 and 14). Pure."""

import re
from dataclasses import dataclass

_RANGE = re.compile(r"bytes\s*=\s*(\d*)\s*-\s*(\d*)", re.ASCII | re.IGNORECASE)
_TAG = re.compile(r'(?:W/)?("[^"]*")')
#: More digits than any size has; more of them say no more.
_DIGITS = 19


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a file: its first byte and its length."""

    offset: int
    length: int

    def content_range(self, size: int) -> str:
        return f"bytes {self.offset}-{self.offset + self.length - 1}/{size}"


class Unsatisfiable(Exception):
    """The range lies outside the file."""


def etag(sha256: str) -> str:
    """Return the entity tag of a file: its bytes and nothing else, so a strong one."""
    return f'"{sha256}"'


def not_modified(if_none_match: str | None, tag: str) -> bool:
    """Tell whether the client has this version already."""
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or tag in _TAG.findall(if_none_match)


def span(header: str | None, if_range: str | None, tag: str, size: int) -> Span | None:
    """Return the part that is asked for, None for the whole; raises `Unsatisfiable`.

    Several ranges, units other than bytes and what is malformed get the whole file, as RFC 9110 14.2 allows; so does an
    `If-Range` that is not the file's tag, for files have no other validator.
    """
    if header is None or (if_range is not None and if_range.strip() != tag):
        return None
    match = _RANGE.fullmatch(header.strip())
    if match is None:
        return None
    first, last = (_number(digits) for digits in match.groups())
    if first is not None:
        return _from(first, last, size)
    return None if last is None else _suffix(last, size)


def _number(digits: str) -> int | None:
    return int(digits.lstrip("0")[:_DIGITS] or "0") if digits else None


def _from(first: int, last: int | None, size: int) -> Span | None:
    if last is not None and last < first:
        return None
    if first >= size:
        raise Unsatisfiable
    end = size if last is None else min(last + 1, size)
    return Span(first, end - first)


def _suffix(length: int, size: int) -> Span | None:
    if not length or not size:
        raise Unsatisfiable
    length = min(length, size)
    return Span(size - length, length)
