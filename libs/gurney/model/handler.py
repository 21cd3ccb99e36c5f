"""Job handlers and the deliveries to them."""

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from gurney.model.access import Caller
from gurney.model.base import Dated, Idempotency, Input, InputLabels, Labels, Message, Owned, Timestamp
from gurney.model.common import Listing


class Handler(Owned):
    """A URL that is told what happens to jobs."""

    PRIVATE: ClassVar[frozenset[str]] = frozenset({"idempotency", "deleting", "enabled_at"})

    url: str
    #: Types such as `job.succeeded`.
    events: tuple[str, ...]
    #: Only jobs of this MAP (id), None: of all.
    map: str | None = None
    #: Only jobs that carry all of these.
    labels: Labels = {}
    state: Literal["active", "disabled"] = "active"
    #: Signs deliveries (Standard Webhooks: `whsec_` and base64); shown once, at creation.
    secret: str | None = None
    deleting: bool = False
    #: When it was enabled again; what was before is not for it.
    enabled_at: Timestamp | None = None


class DeliveryState(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class DeliveryAttempt(Message):
    at: Timestamp
    status: int | None = None
    error: str | None = None
    duration_ms: int


class Delivery(Dated):
    """One event for one handler; unique on the two."""

    PRIVATE: ClassVar[frozenset[str]] = frozenset({"body", "taken_until", "revision", "created_at", "traceparent"})

    #: Event id, also the `webhook-id`.
    event: str
    handler: str
    state: DeliveryState
    attempts: tuple[DeliveryAttempt, ...] = ()
    next_attempt_at: Timestamp | None = None
    #: The JSON that is sent.
    body: str
    #: While set and not past, somebody is delivering it.
    taken_until: Timestamp | None = None
    #: Trace context of the event.
    traceparent: str | None = None

    def unique_keys(self) -> tuple[str, ...]:
        return (f"delivery:{self.event}:{self.handler}",)


TERMINAL_EVENTS = ("job.succeeded", "job.failed", "job.canceled")


class CreateHandler(Input):
    """Body of POST /v1/handlers."""

    url: Annotated[str, Field(min_length=1, max_length=2048)]
    events: Annotated[tuple[str, ...], Field(min_length=1, max_length=32)] = TERMINAL_EVENTS
    #: A MAP by id or name.
    map: str | None = None
    labels: InputLabels = {}


class PatchHandler(Input):
    """Body of PATCH /v1/handlers/{handler}; what is absent stays."""

    events: Annotated[tuple[str, ...], Field(min_length=1, max_length=32)] | None = None
    labels: InputLabels | None = None
    state: Literal["active", "disabled"] | None = None


class HandlerCreate(Message):
    caller: Caller
    body: CreateHandler
    idempotency: Idempotency | None = None


class HandlerPatch(Message):
    caller: Caller
    handler: str
    body: PatchHandler


class HandlerList(Listing):
    """All handlers that a caller may see."""


class DeliveryList(Listing):
    handler: str


class HandlersExist(Message):
    """job -> notifier: are these handlers there for this caller? Raises `Invalid` for the first that is not."""

    caller: Caller
    handlers: tuple[str, ...] = Field(max_length=100)


class WebhookBody(Message):
    """What a handler receives (Standard Webhooks)."""

    type: str
    timestamp: Timestamp
    data: dict[str, Any]
