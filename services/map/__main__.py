"""Puts the MAP service together."""

from gurney.documents.port import Documents
from gurney.service import Parts, Service
from gurney.settings import Settings
from gurney.streams import MAP_INSPECTIONS
from gurney.subjects import (
    MAP_ALIVE,
    MAP_APPROVE,
    MAP_GET,
    MAP_LIST,
    MAP_NEEDED,
    MAP_REGISTER,
    MAP_RENAME,
    MAP_UNREGISTER,
)
from services.map.handlers import Handlers
from services.map.repository import MAPS, TRIALS


def build(settings: Settings, *, documents: Documents) -> Service:
    """Return the service, ready to be entered."""
    service = Service("map", settings, documents, [MAPS, TRIALS])
    handlers = Handlers(service)
    return service.does(
        Parts(
            answers={
                MAP_REGISTER: handlers.register,
                MAP_GET: handlers.get,
                MAP_LIST: handlers.page,
                MAP_RENAME: handlers.rename,
                MAP_APPROVE: handlers.approve,
                MAP_UNREGISTER: handlers.unregister,
                MAP_ALIVE: handlers.alive,
                MAP_NEEDED: handlers.needed,
            },
            consumers={MAP_INSPECTIONS: handlers.reported},
            reconcile=handlers.reconcile,
        )
    )
