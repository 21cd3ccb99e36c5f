"""What the MAP service tells others: events, and the question to the scheduler for an inspection."""

from datetime import datetime

from gurney import ids, telemetry
from gurney.bus import Bus
from gurney.model.event import Event, event_of
from gurney.model.map import InspectMap, Map, MapEvent
from gurney.subjects import MAP_EVENT, SCHEDULER_INSPECT


def told(event: str, document: Map, at: datetime) -> Event:
    """Return `map.<event>.<id>`."""
    data = MapEvent(
        id=document.id,
        project=document.project,
        created_by=document.created_by,
        name=document.name,
        urn=document.urn,
        digest=document.digest,
        state=document.state,
        reason=document.reason,
        at=at,
    )
    subject = MAP_EVENT.of(event=event, map_id=document.id)
    trace = telemetry.traceparent()
    return event_of(subject, data, id=ids.new_id("evt"), source="map", at=at, traceparent=trace)


async def ask_inspection(bus: Bus, document: Map) -> str:
    """Have the scheduler pick a node that inspects the MAP; returns the node."""
    tried = document.inspecting
    if tried is None:
        raise ValueError(f"{document.id} has no inspection")
    question = InspectMap(
        id=tried.id, map_id=document.id, urn=document.urn, avoid=tried.nodes, described=document.supplied is not None
    )
    return (await bus.request(SCHEDULER_INSPECT, question)).node
