"""What clients send becomes models; what is wrong with it is told by field, with the limit."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from aiohttp import ClientError, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from multidict import MultiMapping
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from gurney.errors import FieldError, Invalid, TooLarge, UnsupportedType
from gurney.model.base import Input, InputTimestamp
from gurney.settings import KIB

B = TypeVar("B", bound=BaseModel)

#: A JSON body becomes a message, and none is over 512 KiB.
MAX_JSON = 448 * KIB
#: The longest wait that `Prefer: wait=n` gets.
MAX_WAIT_S = 60
MAX_KEY = 255
MAX_FAULTS = 20

#: What reading a body raises where the client breaks it off, or sends what is none.
BROKEN = (ConnectionError, ClientError, web.RequestPayloadError, HttpProcessingError)
#: Content codings that are none.
PLAIN = frozenset({"", "identity"})

IDEMPOTENCY_KEY = "Idempotency-Key"
PREFER = "Prefer"

_WAIT = re.compile(r"wait\s*=\s*\"?([^\";]*)\"?")


# --- query parameters ---


def _label(text: str) -> str:
    key, equals, _ = text.partition("=")
    if not key or not equals:
        raise ValueError("must be key=value")
    return text


Label = Annotated[str, AfterValidator(_label)]


class Query(Input):
    """Query parameters of a route; unknown ones are errors."""

    #: Those that may be given more than once.
    REPEATED: ClassVar[frozenset[str]] = frozenset()

    def filters(self) -> dict[str, Any]:
        """Return the parameters as the owner's message has them."""
        return dict(self)


class Paged(Query):
    limit: int = Field(default=100, ge=1, le=1000)
    cursor: Annotated[str, Field(max_length=1024)] | None = None


class Labelled(Paged):
    REPEATED = frozenset({"label"})

    label: Annotated[tuple[Label, ...], Field(max_length=64)] = ()
    created_after: InputTimestamp | None = None
    created_before: InputTimestamp | None = None

    def filters(self) -> dict[str, Any]:
        filters = dict(self)
        labels = [label.partition("=") for label in filters.pop("label")]
        return filters | {"labels": tuple((key, value) for key, _, value in labels)}


class DryRun(Query):
    dry_run: bool = False


def query(kind: type[Query] | None, given: MultiMapping[str]) -> Query | None:
    """Return the parameters of a route; `kind` None: it takes none."""
    if not given:
        return kind() if kind else None
    if kind is None:
        raise _faults([FieldError(field=name, message="is no parameter of this route") for name in dict(given)])
    values: dict[str, Any] = {}
    for name in dict(given):
        all_of_it = given.getall(name)
        if name not in kind.REPEATED and len(all_of_it) > 1:
            raise Invalid.field(name, "is given more than once")
        values[name] = all_of_it if name in kind.REPEATED else all_of_it[0]
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise invalid(error, flat=True) from error


# --- bodies ---


def refuse_encoded(request: web.Request) -> None:
    """Refuse a body in a `Content-Encoding`: what is sent is what is stored and hashed, and no body is a bomb."""
    coding = request.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower()
    if request.body_exists and coding not in PLAIN:
        text = f"Content-Encoding: is {coding[:80]}, the body is needed as it is"
        raise web.HTTPUnsupportedMediaType(reason=text, headers={hdrs.ACCEPT_ENCODING: "identity"})


async def json_bytes(request: web.Request) -> bytes:
    """Return a JSON body as it came; none at all is an empty object."""
    if not request.body_exists:  # some clients name a type all the same
        return b"{}"
    if request.content_type != "application/json":
        raise UnsupportedType(f"Content-Type: is {request.content_type[:80]}, application/json is needed")
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise TooLarge(f"body: at most {MAX_JSON} bytes are allowed") from error
    except BROKEN as error:
        raise Invalid.field("body", "broke off, or is malformed") from error


def body(kind: type[B], raw: bytes) -> B:
    """Return the model that a JSON body is, strictly: no text is a number, no number a time, no word a boolean."""
    try:
        return kind.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise invalid(error) from error


def digest(raw: bytes) -> str:
    """Return a digest of a JSON body that does not depend on how it was written."""
    canonical = json.dumps(json.loads(raw or b"null"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


# --- headers ---


def idempotency_key(key: str) -> str:
    """Return a client's `Idempotency-Key` if it may be one."""
    if not 1 <= len(key) <= MAX_KEY or not key.isascii() or not key.isprintable():
        raise Invalid.field(IDEMPOTENCY_KEY, f"must have 1 to {MAX_KEY} printable ASCII characters")
    return key


def prefer_wait(headers: Mapping[str, str], most: int = MAX_WAIT_S) -> int | None:
    """Return the seconds of `Prefer: wait=n`, at most `most`; None where none are asked for."""
    wishes = (_WAIT.match(wish) for wish in _wishes(headers))
    wait = next((match[1].strip() for match in wishes if match), None)
    if wait is None:
        return None
    if not wait.isascii() or not wait.isdecimal():
        raise Invalid.field(PREFER, "wait must be whole seconds, as in wait=60")
    return min(int(wait[:9]), most)


def prefer_async(headers: Mapping[str, str]) -> bool:
    """Tell whether `Prefer: respond-async` is there (RFC 7240)."""
    return any(wish.partition(";")[0].strip() == "respond-async" for wish in _wishes(headers))


def _wishes(headers: Mapping[str, str]) -> list[str]:
    return [wish.strip().lower() for wish in headers.get(PREFER, "").split(",")]


# --- faults ---


def invalid(error: ValidationError, *, flat: bool = False) -> Invalid:
    """Return pydantic's findings by field; `flat`: fields have no parts."""
    found = error.errors(include_url=False, include_input=False)
    return _faults([FieldError(field=_field(each["loc"], flat=flat), message=_message(each)) for each in found])


def _faults(faults: list[FieldError]) -> Invalid:
    told = faults[:MAX_FAULTS]
    return Invalid.fields(told)


def _field(loc: tuple[int | str, ...], *, flat: bool) -> str:
    if flat:
        loc = loc[:1]
    return ".".join(str(part) for part in loc)[:256] or "body"


def _message(error: Any) -> str:
    match error["type"]:
        case "extra_forbidden":
            return "is not known here"
        case "missing":
            return "is missing"
        case "value_error":
            return str(error["ctx"]["error"])
        case "json_invalid":
            return f"is not JSON: {error['ctx']['error']}"
        case _:
            return str(error["msg"])
