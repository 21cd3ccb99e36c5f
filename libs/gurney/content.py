"""The digest of a payload's files, by which what a MAP brings along is pinned."""

import hashlib
from collections.abc import Iterable

from gurney.model.payload import FileView


def digest_of(files: Iterable[FileView]) -> str:
    """Return `sha256:` and the SHA-256 of what `sha256sum` prints of all files, sorted by path (UTF-8).

    An empty folder counts as an empty file whose path ends in `/`.
    """
    lines = sorted((file.path.encode(), file.sha256) for file in files)
    whole = b"".join(b"%s  %s\n" % (sha256.encode(), path) for path, sha256 in lines)
    return f"sha256:{hashlib.sha256(whole).hexdigest()}"
