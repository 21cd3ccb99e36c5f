"""Paths of files inside payloads, and names of MAPs and payloads: what is allowed, checked where they enter."""

import posixpath
import unicodedata
from collections.abc import Iterator

from gurney import ids
from gurney.errors import Invalid

#: The longest path, in bytes of UTF-8.
MAX_PATH_BYTES = 1_024
#: The longest part of a path: what the file systems that runs read from can hold.
MAX_SEGMENT_BYTES = 255
#: The longest name, in characters.
MAX_NAME = 128


def check_path(path: str) -> str:
    """Return `path`, unchanged, if a payload may hold it; one that ends in `/` is an empty folder.

    A backslash is a character like others; nothing is normalised, for a path is the bytes that the client gave.
    """
    fault = _path_fault(path)
    if fault is not None:
        raise Invalid.field("path", fault)
    return path


def is_folder(path: str) -> bool:
    """Tell whether the path stands for an empty folder."""
    return path.endswith("/")


def folders_of(path: str) -> Iterator[str]:
    """Iterate over the folders above `path`, outermost first, each ending in `/`."""
    end = path.find("/")
    while 0 <= end < len(path) - 1:
        yield path[: end + 1]
        end = path.find("/", end + 1)


def holds(outer: str, inner: str) -> bool:
    """Tell whether one absolute path of an image is the other, or lies below it."""
    outer, inner = posixpath.normpath(outer), posixpath.normpath(inner)
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


def check_name(name: str, field: str = "name") -> str:
    """Return the name in NFC if a MAP or payload may have it."""
    name = unicodedata.normalize("NFC", name)
    fault = _name_fault(name)
    if fault is not None:
        raise Invalid.field(field, fault)
    return name


def _path_fault(path: str) -> str | None:
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "must be UTF-8"
    if not encoded:
        return "must not be empty"
    if len(encoded) > MAX_PATH_BYTES:
        return f"has {len(encoded)} bytes, at most {MAX_PATH_BYTES} are allowed"
    if path.startswith("/"):
        return "must be relative: it may not begin with /"
    if any(unicodedata.category(character) == "Cc" for character in path):
        return "must not have control characters"
    return next(filter(None, map(_segment_fault, path.removesuffix("/").split("/"))), None)


def _segment_fault(segment: str) -> str | None:
    if not segment:
        return "must not have empty parts (//)"
    if segment in {".", ".."}:
        return f"must not have the part {segment}"
    if len(segment.encode()) > MAX_SEGMENT_BYTES:
        return f"has a part of {len(segment.encode())} bytes, at most {MAX_SEGMENT_BYTES} are allowed"
    return None


def _name_fault(name: str) -> str | None:
    if not 1 <= len(name) <= MAX_NAME:
        return f"has {len(name)} characters, 1 to {MAX_NAME} are allowed"
    if not name.isprintable():
        return "must have printable characters only"
    if "/" in name:
        return "must not have a /"
    if name in {".", ".."}:
        return f"must not be {name}: no URL could reach it"
    if ids.looks_like_id(name):
        return "must not begin as an id does"
    return None
