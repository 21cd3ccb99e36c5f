"""The port `objects`: immutable bytes under keys, moved over signed URLs.

The store is written once per key: a second PUT of a key is refused. A crash in the middle of a PUT leaves either
nothing visible under the key or the whole object, never a part; what it leaves invisible, `sweep` removes. A PUT that
was answered survives a crash of the host. `gurney.transfer` moves the bytes; there a URL that is expired or not ours
is `Forbidden`, a key without object `NotFound`, a key that is taken `Conflict`, and a store that does not answer or is
full `StoreUnavailable`.
"""

import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from gurney.model.payload import SignedUpload, WantedParts

#: How long a signed URL lives, in seconds. Movers ask again after a refusal.
URL_LIFETIME_S = 15 * 60

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,127}/[A-Za-z0-9_][A-Za-z0-9_-]{0,127}", re.ASCII)


def check_key(key: str) -> str:
    """Return `key` if it is `<owner>/<name>`, both ids or run ids; ValueError otherwise: keys are made by us."""
    if _KEY.fullmatch(key) is None:
        raise ValueError(f"not an object key: {key!r}")
    return key


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store knows of an object: key, size in bytes, when it became visible."""

    key: str
    size: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class Digest:
    """Size in bytes and SHA-256 (lower-case hexadecimal) of what a mover moved."""

    size: int
    sha256: str


class Objects(Protocol):
    """Held by the payload service alone: only it knows the store's credentials."""

    async def open(self) -> None:
        """Make bucket or folder where missing; raises `StoreUnavailable` with one clear line where that fails."""

    async def close(self) -> None: ...

    def sign_put(self, key: str) -> str:
        """Return a URL that creates the object once (`If-None-Match: *`), for `URL_LIFETIME_S`. No IO."""

    def sign_get(self, key: str, saved_as: str | None = None) -> str:
        """Return a URL that reads the object, for `URL_LIFETIME_S`; a browser saves it under this name. No IO."""

    async def sign_upload(self, key: str, parts: WantedParts | None = None) -> SignedUpload:
        """Return fresh URLs for one object, as `sign_put` and `sign_get` do; with `parts` for its parts, too.

        Where these are of no upload yet, one is begun: it is invisible until it is complete, and `give_up` or `sweep`
        removes what never is. Stores whose `sign_put` takes any size have no parts: `Conflict`.
        """

    async def stat(self, key: str) -> ObjectInfo | None:
        """Return what is visible under the key, None where nothing is."""

    async def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; keys that have none are no error. Readers that have begun may read on."""

    async def give_up(self, keys: Iterable[str]) -> None:
        """Remove objects as `delete` does, and the parts of uploads that are not complete."""

    def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Iterate, in no promised order, over the visible objects whose key starts with `prefix`."""

    async def sweep(self, older_than_s: float) -> int:
        """Remove the invisible rest of PUTs that broke off and are older than this; returns how many."""
