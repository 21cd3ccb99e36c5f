"""Puts the scheduler together."""

from datetime import timedelta

from gurney.documents.port import Documents
from gurney.service import Parts, Service
from gurney.settings import Settings
from gurney.subjects import HEARTBEAT
from services.scheduler.admission import AdmissionDesk
from services.scheduler.cluster import Cluster
from services.scheduler.effects import Effects
from services.scheduler.handlers import Handlers
from services.scheduler.leading import leading
from services.scheduler.nodes import Nodes
from services.scheduler.placer import Placer
from services.scheduler.reconcile import Reconcile
from services.scheduler.repository import LEASE, NODES, PLACEMENTS
from services.scheduler.runs import Runs
from services.scheduler.waiting import Waiting

#: A node that missed so many heartbeats gets nothing new.
MISSED_BEATS = 3


def build(settings: Settings, *, documents: Documents) -> Service:
    """Return the service, ready to be entered."""
    service = Service("scheduler", settings, documents, [PLACEMENTS, NODES, LEASE])
    effects = Effects(service.bus, settings)
    cluster = Cluster(timedelta(seconds=MISSED_BEATS * settings.heartbeat_interval))
    placer = Placer(service.store, cluster, effects)
    waiting = Waiting(cluster, effects)
    placer.on_blocked = waiting.look_later
    runs = Runs(cluster, placer.ledger, effects)
    desk = AdmissionDesk(service.bus, service.store, cluster, placer, effects)
    handlers = Handlers(desk, runs, Nodes(service, cluster, placer, runs, effects), effects)
    return service.does(
        Parts(
            answers=handlers.answers,
            consumers=handlers.consumers,
            reconcile=Reconcile(service, handlers, cluster=cluster, ledger=placer.ledger),
            resources=[
                leading(service.store, cluster, placer, waiting, effects),
                service.bus.hearing(HEARTBEAT.of(node_id="*"), handlers.nodes.on_beat),
            ],
        )
    )
