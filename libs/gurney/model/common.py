"""Small messages that several services use."""

from typing import Generic, TypeVar

from pydantic import Field

from gurney.model.access import Caller
from gurney.model.base import Input, Message, Timestamp

T = TypeVar("T")


class Empty(Message):
    """Nothing but success."""


class Listing(Message):
    """What every list takes: who asks, and how much he wants to see."""

    caller: Caller
    limit: int = Field(default=100, ge=1, le=1000)
    cursor: str | None = None


class Filtered(Listing):
    """A list that labels and the time of creation narrow; filters combine by AND."""

    labels: tuple[tuple[str, str], ...] = ()
    created_after: Timestamp | None = None
    created_before: Timestamp | None = None


class Page(Message, Generic[T]):
    """A page of a list; only `next_cursor: null` ends one."""

    items: tuple[T, ...]
    next_cursor: str | None = None


class Ref(Message):
    """One entity by id or name, for a caller; `caller` None: for a service."""

    caller: Caller | None = None
    ref: str


class Digests(Message):
    """Of MAPs, and of what MAPs bring along: of which is asked whether somebody needs them, or which of them are."""

    digests: tuple[str, ...] = Field(default=(), max_length=256)


class Rename(Message):
    """`name` None removes the name."""

    caller: Caller
    ref: str
    name: str | None


class SetName(Input):
    """Body of PUT .../name."""

    name: str


#: What is said of a part.
READY, AWAY = "ready", "away"


class Health(Message):
    """Whether the server is there, and its parts."""

    status: str
    parts: dict[str, str] = {}
