"""AWS Signature Version 4 in the query of a URL: a URL for one request, whoever sends it, until it ends. Pure.

Beside the host the URL may bind headers (`If-None-Match: *`): who uses it must send these, or is refused.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import quote

_ALGORITHM = "AWS4-HMAC-SHA256"
#: The signature is of no body: its size and digest are checked elsewhere.
_UNSIGNED = "UNSIGNED-PAYLOAD"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who signs, and for which region and service."""

    access_key: str
    secret_key: str = field(repr=False)
    region: str
    service: str = "s3"

    def scope(self, at: datetime) -> str:
        return f"{at:%Y%m%d}/{self.region}/{self.service}/aws4_request"

    def signature(self, text: str, at: datetime) -> str:
        return hmac.new(_signing_key(self, f"{at:%Y%m%d}"), text.encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True)
class Request:
    """What is signed: method, host with port, path (not escaped), query and further headers (names in lower case)."""

    method: str
    host: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def signed_headers(self) -> str:
        return ";".join(sorted({"host", *self.headers}))


def signed_query(request: Request, credentials: Credentials, at: datetime, lifetime_s: int) -> str:
    """Return the query that allows the request from `at` on, for `lifetime_s` (at most seven days)."""
    at = at.astimezone(UTC)
    query = {
        **request.query,
        "X-Amz-Algorithm": _ALGORITHM,
        "X-Amz-Credential": f"{credentials.access_key}/{credentials.scope(at)}",
        "X-Amz-Date": f"{at:%Y%m%dT%H%M%SZ}",
        "X-Amz-Expires": str(lifetime_s),
        "X-Amz-SignedHeaders": request.signed_headers,
    }
    signed = Request(request.method, request.host, request.path, query, request.headers)
    return f"{canonical_query(query)}&X-Amz-Signature={signature(signed, credentials, at, _UNSIGNED)}"


def signature(request: Request, credentials: Credentials, at: datetime, payload: str) -> str:
    """Return the signature of a request whose body has the digest `payload`."""
    digest = hashlib.sha256(canonical_request(request, payload).encode()).hexdigest()
    text = f"{_ALGORITHM}\n{at:%Y%m%dT%H%M%SZ}\n{credentials.scope(at)}\n{digest}"
    return credentials.signature(text, at)


def canonical_request(request: Request, payload: str) -> str:
    """Return the one form of the request that both sides sign."""
    headers = {"host": request.host, **request.headers}
    lines = "".join(f"{name}:{' '.join(headers[name].split())}\n" for name in sorted(headers))
    query = canonical_query(request.query)
    return f"{request.method}\n{escaped_path(request.path)}\n{query}\n{lines}\n{request.signed_headers}\n{payload}"


def canonical_query(query: Mapping[str, str]) -> str:
    """Return the query escaped and in order."""
    return "&".join(f"{name}={value}" for name, value in sorted((_escaped(k), _escaped(v)) for k, v in query.items()))


def escaped_path(path: str) -> str:
    """Return the path escaped once, as S3 wants it."""
    return quote(path, safe="/~")


def _escaped(text: str) -> str:
    return quote(text, safe="~")


@lru_cache(maxsize=8)
def _signing_key(credentials: Credentials, day: str) -> bytes:
    key = f"AWS4{credentials.secret_key}".encode()
    for part in (day, credentials.region, credentials.service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key
