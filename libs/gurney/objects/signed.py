"""Signed `file:` URLs: they name an object of a folder store, one verb and an end, and carry an HMAC over these.

The secret lies in the store's folder, so only who may read the store can make or use a URL. What the signature keeps up
is the promise that S3 gives too: a URL is for one object and one verb, and ends.
"""

import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from gurney import clock
from gurney.errors import Forbidden
from gurney.objects import layout
from gurney.objects.port import check_key

Verb = Literal["PUT", "GET"]

_secrets: dict[Path, bytes] = {}


@dataclass(frozen=True, slots=True)
class Target:
    """What an admitted URL stands for."""

    root: Path
    key: str


@dataclass(frozen=True, slots=True)
class _Claim:
    """What a URL says of itself, not yet believed."""

    target: Target
    expires: int
    signature: str

    def holds(self, verb: Verb, secret: bytes) -> bool:
        return hmac.compare_digest(_signature(secret, verb, self.target.key, self.expires), self.signature)


def sign(root: Path, key: str, verb: Verb, expires_at: datetime, secret: bytes) -> str:
    """Return the URL that allows `verb` on `key` until `expires_at`."""
    expires = int(expires_at.timestamp())
    query = urlencode({"verb": verb, "expires": expires, "signature": _signature(secret, verb, key, expires)})
    return f"file://{quote(str(layout.path_of(root, key)))}?{query}"


def admit_known(url: str, verb: Verb) -> Target | None:
    """Return the target if that can be told without IO, None where the store's secret must be read first."""
    claim = _parse(url, verb)
    secret = _secrets.get(claim.target.root)
    if secret is None or not claim.holds(verb, secret):
        return None
    return claim.target


def admit(url: str, verb: Verb) -> Target:
    """Return what the URL stands for; `Forbidden` where it is expired, forged or for another verb. Reads the secret."""
    claim = _parse(url, verb)
    secret = layout.read_secret(claim.target.root)
    if secret is None or not claim.holds(verb, secret):
        raise Forbidden("the URL is not signed by this store for this use")
    _secrets[claim.target.root] = secret
    return claim.target


def _parse(url: str, verb: Verb) -> _Claim:
    try:
        parts = urlsplit(url)
        query = parse_qs(parts.query, strict_parsing=True)
        (signature,), (expires,), (said,) = query["signature"], query["expires"], query["verb"]
        path = Path(unquote(parts.path))
        target = Target(path.parents[3], check_key("/".join(path.parts[-2:])))
        claim = _Claim(target, int(expires), signature)
    except (ValueError, LookupError):
        raise Forbidden("the URL is not one that this store signs") from None
    if layout.path_of(target.root, target.key) != path or said != verb:
        raise Forbidden(f"the URL is not for {verb}")
    if claim.expires <= clock.now().timestamp():
        raise Forbidden("the URL has expired")
    return claim


def _signature(secret: bytes, verb: str, key: str, expires: int) -> str:
    return hmac.new(secret, f"{verb}\n{key}\n{expires}".encode(), hashlib.sha256).hexdigest()
