"""The states of a MAP: `registering` -> `ready` | `invalid` -> `unregistered`. Pure; nobody else assigns `state`."""

import contextlib
from datetime import datetime, timedelta

from gurney.errors import MapNotReady, MapUnreadable
from gurney.model.base import Reason
from gurney.model.map import Description, Inspecting, InspectReport, Manifest, Map, MapState
from services.map import manifest, supplied

#: An inspection that was not reported by then is tried on another node.
INSPECTION_S = 600.0
ATTEMPTS = 3

TRANSITIONS: dict[MapState, frozenset[MapState]] = {
    MapState.REGISTERING: frozenset({MapState.READY, MapState.INVALID, MapState.UNREGISTERED}),
    MapState.READY: frozenset({MapState.UNREGISTERED}),
    MapState.INVALID: frozenset({MapState.UNREGISTERED}),
    MapState.UNREGISTERED: frozenset(),
}


#: Jobs may be made of the MAP, or perhaps later: so long what it brings along is held, and nodes keep their copies.
MAY_RUN = frozenset({MapState.REGISTERING, MapState.READY})


def may_run(document: Map) -> bool:
    return document.state in MAY_RUN


def first_inspection(inspection_id: str, now: datetime) -> Inspecting:
    return Inspecting(id=inspection_id, deadline=now + timedelta(seconds=INSPECTION_S))


def reported(document: Map, report: InspectReport, now: datetime) -> Map | None:
    """Return what a report makes of the MAP; None where it is not (or no longer) of this inspection."""
    if document.inspecting is None or document.inspecting.id != report.id:
        return None
    match report.phase:
        case "progress":
            return document.next(progress=report.progress)
        case "failed":
            return invalid(document, report.reason or Reason.of("internal", "the node gave no reason"))
        case "done":
            return _read(document, report, now)


def next_attempt(document: Map, inspection_id: str, now: datetime) -> Map | None:
    """Return the MAP with its next inspection, `invalid` after the last; None before the deadline."""
    tried = document.inspecting
    if document.state is not MapState.REGISTERING or tried is None or now < tried.deadline:
        return None
    if tried.attempt >= ATTEMPTS:
        return invalid(document, Reason.of("inspection_timeout", f"{ATTEMPTS} nodes did not answer in time"))
    inspecting = first_inspection(inspection_id, now).but(attempt=tried.attempt + 1, nodes=tried.nodes)
    return document.next(inspecting=inspecting)


def refused(document: Map, reason: Reason) -> Map | None:
    """Return the MAP that no node may inspect; None where it was read meanwhile."""
    return invalid(document, reason) if document.state is MapState.REGISTERING else None


def is_unasked(document: Map) -> bool:
    """Tell whether no node has been told of the current attempt."""
    tried = document.inspecting
    return document.state is MapState.REGISTERING and tried is not None and len(tried.nodes) < tried.attempt


def asked(document: Map, inspection_id: str, node: str) -> Map | None:
    """Return the MAP with the node noted that inspects it."""
    if document.inspecting is None or document.inspecting.id != inspection_id:
        return None
    inspecting = document.inspecting
    if len(inspecting.nodes) >= inspecting.attempt:  # another replica has asked, too: JetStream has dropped one of both
        return None
    return document.next(inspecting=inspecting.but(nodes=(*inspecting.nodes, node)))


def invalid(document: Map, reason: Reason) -> Map:
    return _to(document, MapState.INVALID).but(reason=reason, inspecting=None, progress=None)


def approved(document: Map, by: str, now: datetime) -> Map | None:
    """Return the MAP approved by `by`; None where it is already. Raises `MapNotReady`: nobody has seen what it is."""
    if document.state is not MapState.READY:
        raise MapNotReady(f"the MAP {document.id} is {document.state}: only what is ready can be approved")
    if document.approved:
        return None
    return document.next(approved=True, approved_by=by, approved_at=now)


def unregistered(document: Map) -> Map | None:
    """Return the MAP unregistered, its name free; None where it is already."""
    if document.state is MapState.UNREGISTERED:
        return None
    return _to(document, MapState.UNREGISTERED).but(name=None, inspecting=None, progress=None)


def _read(document: Map, report: InspectReport, now: datetime) -> Map:
    try:
        manifests, description = _described(document, report)
    except MapUnreadable as error:
        return invalid(document, Reason.of(error.reason, str(error))).but(digest=report.digest)
    return _to(document, MapState.READY).but(
        digest=report.digest,
        manifests=manifests,
        description=description,
        ready_at=now,
        inspecting=None,
        progress=None,
        reason=None,
    )


def _described(document: Map, report: InspectReport) -> tuple[tuple[Manifest, ...], Description]:
    if document.supplied is None:
        return manifest.read(report.manifests)
    description = supplied.described(document.supplied, report.command or _said(report))
    return manifest.raw(report.manifests), description.but(content=document.content)


def _said(report: InspectReport) -> tuple[str, ...]:
    """Return the command that manifests name: folders have no other."""
    with contextlib.suppress(MapUnreadable):
        return manifest.read(report.manifests)[1].command
    return ()


def _to(document: Map, state: MapState) -> Map:
    if state not in TRANSITIONS[document.state]:
        raise ValueError(f"a MAP cannot go from {document.state} to {state}")
    return document.next(state=state)
