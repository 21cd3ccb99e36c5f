"""What every message and document has in common: frozen pydantic models, JSON on the wire, UTC with microseconds."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from gurney.clock import rfc3339
from gurney.errors import IdempotencyKeyReused


def _utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise ValueError("lies outside the years 1 to 9999 in UTC") from None


#: UTC, written as RFC 3339 with microseconds always, so that texts sort as times do.
Timestamp = Annotated[
    AwareDatetime, AfterValidator(_utc), PlainSerializer(rfc3339, return_type=str, when_used="json-unless-none")
]

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)


def _rfc3339(given: object) -> datetime:
    if isinstance(given, datetime):
        return given
    if not isinstance(given, str) or not _RFC3339.fullmatch(given.upper()):
        raise ValueError("must be an RFC 3339 time such as 2026-01-31T12:00:00Z (in a query, write + as %2B)")
    return datetime.fromisoformat(given.upper())


#: A time as a client sends it: RFC 3339 only, where `Timestamp` takes seconds since 1970, too.
InputTimestamp = Annotated[Timestamp, BeforeValidator(_rfc3339)]

Labels = dict[str, str]

MAX_LABELS, MAX_LABEL_KEY, MAX_LABEL_VALUE = 64, 63, 255


def _checked_labels(labels: Labels) -> Labels:
    if len(labels) > MAX_LABELS:
        raise ValueError(f"has {len(labels)} labels, at most {MAX_LABELS} are allowed")
    for key, value in labels.items():
        if not 1 <= len(key) <= MAX_LABEL_KEY or not key.isprintable() or "=" in key:
            raise ValueError(f"a key must have 1 to {MAX_LABEL_KEY} printable characters and no =")
        if len(value) > MAX_LABEL_VALUE or "\0" in value:
            raise ValueError(f"a value must have at most {MAX_LABEL_VALUE} characters and no NUL")
    return labels


#: Labels as a client sends them.
InputLabels = Annotated[Labels, AfterValidator(_checked_labels)]


class Message(BaseModel):
    """A frozen message. Fields that a newer peer adds are ignored, so old and new run side by side."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def encode(self) -> bytes:
        return self.model_dump_json().encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        return cls.model_validate_json(data)

    def but(self, **changes: Any) -> Self:
        """Return a copy with these fields changed; the values are trusted, as `model_copy` trusts them."""
        return self.model_copy(update=changes)


class Input(BaseModel):
    """What a client sends: unknown fields are errors, so that a typing mistake is told, not ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Idempotency(Message):
    """The key under which a client may repeat a POST, and a digest of the body it came with."""

    #: Unique: token, route and the client's key.
    key: str
    digest: str


class Document(Message):
    """A document with one owner. `revision` counts its changes, from 1; an owner writes by compare-and-set on it."""

    #: Fields that never leave the server.
    PRIVATE: ClassVar[frozenset[str]] = frozenset()
    #: Fields that lists leave out.
    LIST_OMITS: ClassVar[frozenset[str]] = frozenset()

    id: str
    revision: int = Field(default=1, ge=1)

    def next(self, **changes: Any) -> Self:
        """Return the document's next revision with these changes."""
        return self.but(revision=self.revision + 1, **changes)

    def unique_keys(self) -> tuple[str, ...]:
        """Return the keys that no other document of the collection may hold at the same time."""
        return ()

    def public(self, *, in_list: bool = False) -> dict[str, Any]:
        """Return what a client sees, as JSON-ready values."""
        hidden = self.PRIVATE | self.LIST_OMITS if in_list else self.PRIVATE
        return self.model_dump(mode="json", exclude=set(hidden))

    def public_json(self, *, in_list: bool = False) -> bytes:
        """Return `public()` as JSON, without the way over dictionaries."""
        hidden = self.PRIVATE | self.LIST_OMITS if in_list else self.PRIVATE
        return self.model_dump_json(exclude=set(hidden)).encode()


class Dated(Document):
    """A document of a list: newest first by (`created_at`, id)."""

    created_at: Timestamp


class Owned(Dated):
    """A document that a client made: it has a project, an author and may have been made under an idempotency key."""

    PRIVATE: ClassVar[frozenset[str]] = frozenset({"idempotency"})

    project: str = "default"
    #: The subject of the token that made it.
    created_by: str = ""
    idempotency: Idempotency | None = None

    def repeated(self, asked: Idempotency | None) -> Self:
        """Return the document as the answer to a request made again; raises `IdempotencyKeyReused`."""
        if asked is None or self.idempotency is None or self.idempotency.digest != asked.digest:
            raise IdempotencyKeyReused("the Idempotency-Key was used with another body")
        return self

    def unique_keys(self) -> tuple[str, ...]:
        return (f"idempotency:{self.idempotency.key}",) if self.idempotency else ()


class Reason(Message):
    """Why something is as it is: a stable code and a sentence of at most 2 KiB."""

    code: str
    message: str = ""

    @classmethod
    def of(cls, code: str, message: str = "") -> "Reason":
        return cls(code=code, message=clip(message, 2048))


def clip(text: str, limit: int) -> str:
    """Cut a text to `limit` bytes of UTF-8."""
    raw = text.encode(errors="replace")
    return raw.decode() if len(raw) <= limit else raw[: limit - 3].decode(errors="ignore") + "..."
