"""Moves bytes over signed URLs: `open_put` and `open_get` for streams, `put_file` and `fetch_to` for local files.

`file:` URLs are of a folder store, `http:` and `https:` of an S3 server; who moves much stays in `pooled()` meanwhile.
A PUT gets `ask`, which fetches fresh URLs: without it a lapsed URL ends it, and an S3 server takes 8 MiB at most.

A URL that is expired or not ours is `Forbidden` (ask for a new one), a taken key `Conflict`, a missing object
`NotFound`, a store that is away or full `StoreUnavailable`. Faults of local files come as `OSError`.
"""

from contextlib import AbstractAsyncContextManager
from pathlib import Path

from gurney.errors import Forbidden
from gurney.objects.port import Digest
from gurney.objects.sessions import pooled
from gurney.transfer.file import FileMover
from gurney.transfer.http import HttpMover
from gurney.transfer.port import Ask, Get, Mover, Put

__all__ = ["MOVERS", "Ask", "Digest", "Get", "Mover", "Put", "fetch_to", "open_get", "open_put", "pooled", "put_file"]

#: Who moves bytes, by the URL's scheme.
MOVERS: dict[str, Mover] = {"file": FileMover(), "http": HttpMover(), "https": HttpMover()}


def open_put(url: str, ask: Ask | None = None, size: int | None = None) -> AbstractAsyncContextManager[Put]:
    """Open a PUT: write, then commit. Leaving without commit leaves nothing behind.

    Who knows the size beforehand says it, and must then write just so much.
    """
    return _mover(url).open_put(url, ask, size)


def open_get(
    url: str, offset: int = 0, length: int | None = None, expected: Digest | None = None
) -> AbstractAsyncContextManager[Get]:
    """Open a GET of the whole object or a range of it.

    With `expected`, for whole objects only, `IntegrityError` comes before the last chunk is handed out where size or
    SHA-256 differ: who passes chunks on and breaks off then never delivers a complete body that is wrong.
    """
    if expected is not None and (offset or length is not None):
        raise ValueError("a digest is of the whole object: a range cannot be held against it")
    return _mover(url).open_get(url, offset, length, expected)


async def fetch_to(url: str, path: Path, expected: Digest, mode: int = 0o600) -> None:
    """Copy the object to a local file (replacing it, making its folders) and verify what was written.

    On any error there is no file at `path`; after a crash there may be a part of one.
    """
    await _mover(url).fetch_to(url, path, expected, mode)


async def put_file(path: Path, url: str, ask: Ask | None = None) -> Digest:
    """Store a local file; a link or anything else that is no regular file is `Invalid` (field `path`)."""
    return await _mover(url).put_file(path, url, ask)


def _mover(url: str) -> Mover:
    scheme = url.partition(":")[0].lower()
    try:
        return MOVERS[scheme]
    except KeyError:
        raise Forbidden(f"no mover for URLs of the scheme {scheme!r}") from None
