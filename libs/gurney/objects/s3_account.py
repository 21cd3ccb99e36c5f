"""One bucket of an S3 server and who may use it: signs its URLs, makes it, and translates the SDK's errors."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, S3Error, ServerError

from gurney.errors import Forbidden, StoreUnavailable
from gurney.objects.calls import Lasting
from gurney.objects.sigv4 import Credentials, Request, escaped_path, signed_query

#: Seconds for the SDK's calls: until a connection stands, and without a byte of an answer.
_CONNECT_S, _SILENCE_S = 3.0, 15.0
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_OURS_ALREADY = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}
_UNKNOWN = {"AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "Forbidden"}


@dataclass(frozen=True)
class Account:
    """Where the bucket is, and the only credentials there are. `public_url`: as edges and agents reach the server."""

    address: str
    bucket: str
    credentials: Credentials
    public_url: str | None = None

    def url(
        self,
        method: str,
        key: str | None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        at: datetime,
        lifetime_s: int,
        internal: bool = False,
    ) -> str:
        """Return the URL that allows one request on an object, or on the bucket where `key` is None."""
        origin = _origin(self.address if internal or self.public_url is None else self.public_url)
        path = f"/{self.bucket}/{key}" if key else f"/{self.bucket}"
        bound = {name.lower(): value for name, value in (headers or {}).items()}
        request = Request(method, origin.partition("://")[2], path, query or {}, bound)
        return f"{origin}{escaped_path(path)}?{signed_query(request, self.credentials, at, lifetime_s)}"

    def connect(self, pool: urllib3.PoolManager) -> Minio:
        """Return a client of the SDK over these connections, and see that the bucket is there. Blocks."""
        client = self._client(pool)
        with self.translated():
            if not client.bucket_exists(self.bucket):
                self._make_bucket(client)
        return client

    def _make_bucket(self, client: Minio) -> None:
        try:
            client.make_bucket(self.bucket)
        except S3Error as error:  # perhaps another made it in this moment
            if error.code not in _OURS_ALREADY or not client.bucket_exists(self.bucket):
                text = f"bucket {self.bucket!r} at {self.address} cannot be made: {error.code}"
                raise Lasting(text) from error

    def _client(self, pool: urllib3.PoolManager) -> Minio:
        origin = urlsplit(_origin(self.address))
        return Minio(
            origin.netloc,
            self.credentials.access_key,
            self.credentials.secret_key,
            secure=origin.scheme == "https",
            region=self.credentials.region,
            http_client=pool,
        )

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn the SDK's errors into ours, with one clear line."""
        try:
            yield
        except S3Error as error:
            if error.code in _UNKNOWN:
                raise self._refused(error.code) from error
            raise Lasting(f"the object store at {self.address} answers {error.code}: {error.message}") from error
        except ValueError as error:  # the SDK knows better than to ask
            raise Lasting(f"bucket {self.bucket!r} at {self.address} cannot be: {error}") from error
        except (urllib3.exceptions.HTTPError, ServerError, InvalidResponseError, OSError) as error:
            raise StoreUnavailable(f"the object store at {self.address} is not there: {_reason(error)}") from error

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Turn a refusal of our own credentials, which nobody can ask for anew, into `StoreUnavailable`."""
        try:
            yield
        except Forbidden as error:
            raise self._refused(str(error)) from error

    def _refused(self, why: str) -> Lasting:
        who = f"s3_access_key {self.credentials.access_key!r} or its s3_secret_key"
        return Lasting(f"the object store at {self.address} refuses {who} on bucket {self.bucket!r}: {why}")


@contextmanager
def closing_pool() -> Iterator[urllib3.PoolManager]:
    """Connections for the SDK that give up within seconds, where its own would try for half an hour."""
    pool = urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=_CONNECT_S, read=_SILENCE_S),
        maxsize=8,
        cert_reqs="CERT_REQUIRED",  # by the certificates of the host, as movers do
        retries=urllib3.Retry(total=1, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
    )
    try:
        yield pool
    finally:
        pool.clear()


def _origin(url: str) -> str:
    """Return scheme and host as clients send them: without the port that goes without saying."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.lower().removesuffix(_DEFAULT_PORTS[parts.scheme])}"


def _reason(error: Exception) -> str:
    """Return the innermost cause, which is what a person can act on."""
    if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None:
        error = error.reason
    return (str(error).rpartition(": ")[2] or type(error).__name__).splitlines()[0][:200]
