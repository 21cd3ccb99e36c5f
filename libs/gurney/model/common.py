"""Small messages that several services use."""

from typing import Generic, TypeVar

from gurney.model.access import Caller
from gurney.model.base import Input, Message

T = TypeVar("T")


class Empty(Message):
    """Nothing but success."""


class Page(Message, Generic[T]):
    """A page of a list; only `next_cursor: null` ends one."""

    items: tuple[T, ...]
    next_cursor: str | None = None


class Ref(Message):
    """One entity by id or name, for a caller; `caller` None: for a service."""

    caller: Caller | None = None
    ref: str


class Rename(Message):
    """`name` None removes the name."""

    caller: Caller
    ref: str
    name: str | None


class SetName(Input):
    """Body of PUT .../name."""

    name: str


class Health(Message):
    """Whether the server is there, and its parts."""

    status: str
    parts: dict[str, str] = {}
