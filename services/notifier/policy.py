"""What the notifier decides: who is told of what, what is sent, when it is tried again. Pure."""

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Literal

from gurney.clock import rfc3339
from gurney.model.handler import Delivery, DeliveryAttempt, DeliveryState, Handler
from gurney.model.job import JobEvent

#: A delivery that somebody has taken is another's after this time.
TAKEN_S = 30.0
#: Seconds before each further attempt; the last one repeats until the patience ends.
BACKOFF_S = (1.0, 5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0)
#: Share by which a wait is made longer or shorter, so that targets are not hit by all at once.
JITTER = 0.2
GONE = 410
#: Type of what a handler is sent to try it.
TEST = "handler.test"


def wanted(handler: Handler, event: JobEvent) -> bool:
    """Tell whether a handler is to be told of an event."""
    if handler.state != "active" or handler.deleting or handler.project != event.project:
        return False
    if (handler.enabled_at or handler.created_at) > event.at or f"job.{event.event}" not in handler.events:
        return False
    if event.handlers is not None:
        return handler.id in event.handlers
    labeled = all(event.labels.get(key) == value for key, value in handler.labels.items())
    return labeled and handler.map in {None, event.map.id}


def heeded(handlers: Iterable[Handler], kind: str) -> bool:
    """Tell whether any handler wants events of this type."""
    return any(kind in handler.events for handler in handlers)


def deliveries(
    handlers: Iterable[Handler], events: Iterable[JobEvent], new_ids: Iterable[str], now: datetime
) -> list[Delivery]:
    """Return a delivery, already taken by the caller, for each handler that wants an event."""
    pairs = [(handler, event) for event in events for handler in handlers if wanted(handler, event)]
    return [first_delivery(id_, handler, event, now) for id_, (handler, event) in zip(new_ids, pairs, strict=False)]


def first_delivery(id_: str, handler: Handler, event: JobEvent, now: datetime) -> Delivery:
    return Delivery(
        id=id_,
        event=event.event_id,
        handler=handler.id,
        state=DeliveryState.PENDING,
        created_at=now,
        next_attempt_at=now,
        body=body(f"job.{event.event}", event),
        taken_until=now + timedelta(seconds=TAKEN_S),
        traceparent=event.traceparent,
    )


def body(kind: str, event: JobEvent) -> str:
    """Return what a handler receives: ids, the MAP's name, state, times, counts and links; no other text of anybody."""
    data = event.model_dump(
        mode="json",
        include={
            "id": True,
            "map": {"id", "name"},
            "payload": True,
            "results": True,
            "state": True,
            "attempt": True,
            "exit_code": True,
            "counts": True,
            "created_at": True,
            "scheduled_at": True,
            "started_at": True,
            "stopped_at": True,
        },
    )
    data["reason"] = event.reason
    data["links"] = {"job": f"/v1/jobs/{event.id}", "results": f"/v1/jobs/{event.id}/results"}
    return json.dumps({"type": kind, "timestamp": rfc3339(event.at), "data": data}, separators=(",", ":"))


def take(delivery: Delivery, now: datetime, born: datetime | None = None) -> Delivery | None:
    """Return the delivery taken; None where it is not due, or another's. Who took it before `born` is dead."""
    if delivery.state is not DeliveryState.PENDING or not delivery.next_attempt_at:
        return None
    if delivery.next_attempt_at > now or _is_taken(delivery, now, born):
        return None
    return delivery.next(taken_until=now + timedelta(seconds=TAKEN_S))


def kept(delivery: Delivery, now: datetime, needed_s: float) -> Delivery | None:
    """Return the delivery taken anew, where it is not taken for as long as an attempt needs; None where it is."""
    until = delivery.taken_until
    if until is not None and until - now >= timedelta(seconds=needed_s):
        return None
    return delivery.next(taken_until=now + timedelta(seconds=TAKEN_S))


def given_up(delivery: Delivery, handler: Handler) -> Delivery | None:
    """Return the delivery ended, where its handler was disabled meanwhile and it is no test; None: it is to be sent."""
    if handler.state == "active" or json.loads(delivery.body)["type"] == TEST:
        return None
    return delivery.next(state=DeliveryState.FAILED, next_attempt_at=None, taken_until=None)


def _is_taken(delivery: Delivery, now: datetime, born: datetime | None) -> bool:
    until = delivery.taken_until
    if until is None or until <= now:
        return False
    return born is None or until - timedelta(seconds=TAKEN_S) >= born


def tried(delivery: Delivery, attempt: DeliveryAttempt, patience_s: float, chance: float) -> Delivery:
    """Return the delivery after an attempt; `chance` is from 0 to 1."""
    attempts = (*delivery.attempts, attempt)
    verdict = _verdict(attempt.status)
    if verdict == "again":
        wait = BACKOFF_S[min(len(attempts), len(BACKOFF_S)) - 1] * (1 - JITTER + 2 * JITTER * chance)
        due = attempt.at + timedelta(seconds=wait)
        if due <= delivery.created_at + timedelta(seconds=patience_s):
            return delivery.next(attempts=attempts, next_attempt_at=due, taken_until=None)
    state = DeliveryState.DELIVERED if verdict == "delivered" else DeliveryState.FAILED
    return delivery.next(attempts=attempts, state=state, next_attempt_at=None, taken_until=None)


def _verdict(status: int | None) -> Literal["delivered", "again", "never"]:
    if status is not None and 200 <= status < 300:  # noqa: PLR2004  # the class of success
        return "delivered"
    return "never" if status == GONE else "again"
