"""What a placement says of its job: the same lifecycle messages, whenever they are made up. Pure."""

from collections.abc import Iterable
from typing import get_args

from gurney.ids import job_event_id
from gurney.model.job import Phase
from gurney.model.run import Ending, Lifecycle, Placement
from gurney.paging import PAGE_BYTES


def implied(placement: Placement) -> list[Lifecycle]:
    """Return the messages that the placement stands for, in order."""
    return [message_of(placement, event) for event in sorted(placement.told, key=placement.told.__getitem__)]


def news(before: Placement | None, after: Placement) -> list[Lifecycle]:
    """Return the messages that a change stands for."""
    known = before.told if before else {}
    return [message for message in implied(after) if message.event not in known]


def message_of(placement: Placement, event: str) -> Lifecycle:
    """Return one of the placement's messages."""
    ending = event in get_args(Ending)
    stamps = {"scheduled": placement.placed_at, "started": placement.started_at}
    return Lifecycle(
        event=event,
        event_id=job_event_id(placement.job_id, placement.attempt, event),
        job_id=placement.job_id,
        attempt=placement.attempt,
        revision=placement.told[event],
        at=stamps.get(event) or placement.ended_at or placement.placed_at,
        node=placement.node,
        gpu_limit=placement.gpu_limit,
        phase=Phase(name="running") if event == "started" else None,
        outcome=placement.outcome if ending else None,
    )


def page(placements: Iterable[Placement]) -> tuple[Lifecycle, ...]:
    """Return the messages of as many placements as fit into one message of NATS, at least of one."""
    items: list[Lifecycle] = []
    size = 0
    for placement in placements:
        messages = implied(placement)
        size += sum(len(message.model_dump_json().encode()) for message in messages)
        if items and size > PAGE_BYTES:
            break
        items += messages
    return tuple(items)
