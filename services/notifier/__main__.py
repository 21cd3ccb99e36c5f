"""Puts the notifier together."""

from gurney.documents.port import Documents
from gurney.service import Parts, Service
from gurney.settings import Settings
from gurney.streams import NOTIFIER_JOBS
from gurney.subjects import (
    HANDLER_CREATE,
    HANDLER_DELETE,
    HANDLER_DELIVERIES,
    HANDLER_EXIST,
    HANDLER_GET,
    HANDLER_LIST,
    HANDLER_PATCH,
    HANDLER_TEST,
    NOTIFIER_HANDLERS,
)
from services.notifier.handlers import Handlers
from services.notifier.known import KnownHandlers
from services.notifier.lanes import Lanes
from services.notifier.repository import DELIVERIES, HANDLERS
from services.notifier.sender import Sender
from services.notifier.telling import Telling


def build(settings: Settings, *, documents: Documents, alone: bool = False) -> Service:
    """Return the service, ready to be entered. `alone`: no other replica is there, so what one had taken is free."""
    service = Service("notifier", settings, documents, [HANDLERS, DELIVERIES])
    sender = Sender(settings)
    known = KnownHandlers(service.store, alone=alone)
    lanes = Lanes(service.store, sender, known, settings, alone=alone)
    telling = Telling(service.bus, service.store, lanes, known)
    handlers = Handlers(service, lanes, known, settings)

    async def reconcile() -> None:
        await telling.make_up()
        await handlers.tidy()
        lanes.wake()

    async def changed(_: str, __: bytes) -> None:
        known.changed()

    service.bus.on_reconnect.append(known.changed)  # a notice may have been lost
    return service.does(
        Parts(
            answers={
                HANDLER_CREATE: handlers.create,
                HANDLER_GET: handlers.get,
                HANDLER_LIST: handlers.page,
                HANDLER_PATCH: handlers.patch,
                HANDLER_DELETE: handlers.delete,
                HANDLER_TEST: handlers.test,
                HANDLER_DELIVERIES: handlers.deliveries,
                HANDLER_EXIST: handlers.exist,
            },
            consumers={NOTIFIER_JOBS: telling.heard},
            reconcile=reconcile,
            tasks=[lanes.run, telling.run, telling.mark],
            resources=[service.bus.hearing(NOTIFIER_HANDLERS.subject, changed), sender],
        )
    )
