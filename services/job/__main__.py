"""Puts the job service together."""

from gurney.documents.port import Documents
from gurney.service import Parts, Service
from gurney.settings import Settings
from gurney.streams import JOB_LIFECYCLE
from gurney.subjects import (
    JOB_ALIVE,
    JOB_AWAIT,
    JOB_CANCEL,
    JOB_CREATE,
    JOB_DELETE,
    JOB_FINALIZE,
    JOB_GET,
    JOB_LIST,
    JOB_LIVE,
    JOB_NEEDED,
    JOB_NOTIFIED,
    JOB_OWED,
)
from services.job.create import Create
from services.job.effects import Effects
from services.job.handlers import Handlers
from services.job.reconcile import Reconcile
from services.job.repository import JOBS
from services.job.settle import Settle


def build(settings: Settings, *, documents: Documents) -> Service:
    """Return the service, ready to be entered."""
    service = Service("job", settings, documents, [JOBS])
    effects, settle = Effects(service), Settle(service)
    handlers = Handlers(service, effects, settle)
    return service.does(
        Parts(
            answers={
                JOB_CREATE: Create(service, effects),
                JOB_GET: handlers.get,
                JOB_LIST: handlers.page,
                JOB_CANCEL: handlers.cancel,
                JOB_AWAIT: handlers.wait,
                JOB_FINALIZE: handlers.finalize,
                JOB_DELETE: handlers.delete,
                JOB_LIVE: handlers.live,
                JOB_ALIVE: handlers.alive,
                JOB_NEEDED: handlers.needed,
                JOB_OWED: handlers.owed,
                JOB_NOTIFIED: handlers.notified,
            },
            consumers={JOB_LIFECYCLE: handlers.lifecycle},
            reconcile=Reconcile(service, effects, settle),
        )
    )
