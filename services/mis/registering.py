"""Brings the deployment's MAP to where it can run: registered where it is not yet, and inspected."""

import hashlib
import json

from gurney.client import AsyncClient
from gurney.client.http import Json
from gurney.errors import MapNotReady
from services.mis.settings import MisSettings

#: Names what a deployment says of its MAP: its URN, which Gurney writes in a way of its own, and its description.
LABEL = "gurney.mis"


async def ready(gurney: AsyncClient, settings: MisSettings) -> Json:
    """Return the MAP once it can run; raises `MapNotReady` with the reason why it cannot."""
    label = {LABEL: _digest(settings)}
    known = [found async for found in gurney.maps.list(label=label)]
    usable = [found for found in known if found["state"] in {"ready", "registering"}]
    registered = (
        usable[0]
        if usable
        else await gurney.maps.register(settings.map_urn, labels=label, description=settings.description)
    )
    found = await gurney.maps.settled(registered["id"])
    if found["state"] != "ready":
        reason = found["reason"] or {}
        raise MapNotReady(f"{settings.map_urn} is {found['state']}: {reason.get('message') or reason.get('code')}")
    return found


def _digest(settings: MisSettings) -> str:
    said = json.dumps([settings.map_urn, settings.description], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]
