"""Puts the scheduler together."""

from datetime import timedelta

from gurney.documents.port import Documents
from gurney.service import Parts, Service
from gurney.settings import Settings
from gurney.subjects import HEARTBEAT
from services.scheduler.admission import AdmissionDesk
from services.scheduler.beats import Beats
from services.scheduler.campaign import Campaign
from services.scheduler.cluster import Cluster
from services.scheduler.effects import Effects
from services.scheduler.handlers import Handlers
from services.scheduler.history import History
from services.scheduler.leading import able, leading, leading_alone
from services.scheduler.nodes import Nodes
from services.scheduler.office import Office
from services.scheduler.placer import Placer
from services.scheduler.presence import Presence
from services.scheduler.reconcile import Reconcile
from services.scheduler.repository import LEASE, NODES, PLACEMENTS, PROJECT_PASTS, RUN_TIMES
from services.scheduler.runs import Runs
from services.scheduler.tenure import Tenure
from services.scheduler.waiting import Waiting
from services.scheduler.watch import Watch

#: A node that missed so many heartbeats gets nothing new.
MISSED_BEATS = 3


def build(settings: Settings, *, documents: Documents, alone: bool = False) -> Service:
    """Return the service, ready to be entered. `alone`: no other scheduler is there, so it leads at once, for ever."""
    service = Service("scheduler", settings, documents, [PLACEMENTS, NODES, LEASE, PROJECT_PASTS, RUN_TIMES])
    effects = Effects(service.bus, settings)
    if not alone:
        campaign = Campaign(service, lambda tenure: lead(service, tenure, effects))
        return service.does(Parts(tasks=(campaign.run,), resources=[able(effects)]))
    tenure = Tenure()
    parts = lead(service, tenure, effects)
    parts.resources = [able(effects), leading_alone(service.store, tenure), *parts.resources]
    return service.does(parts)


def lead(service: Service, tenure: Tenure, effects: Effects) -> Parts:
    """Return what a leader does during one tenure."""
    settings = service.settings
    office = Office(
        service,
        service.store.guarded(tenure.check),
        tenure,
        Cluster(timedelta(seconds=MISSED_BEATS * settings.heartbeat_interval), settings.quotas),
        Presence(settings.node_lost_after),
        effects,
    )
    placer = Placer(office)
    waiting = Waiting(office.cluster, effects)
    placer.on_blocked = waiting.look_later
    runs = Runs(office, placer.ledger)
    beats = Beats(office, placer, runs)
    desk = AdmissionDesk(office, placer)
    handlers = Handlers(tenure, desk, runs, Nodes(office, placer), beats)
    history = History(office)
    return Parts(
        answers=handlers.answers,
        consumers=handlers.consumers,
        reconcile=Reconcile(office, handlers, placer.ledger),
        tasks=(Watch(office, beats, runs).run, history.keep),
        resources=[
            history,
            leading(office, placer, waiting),
            service.bus.hearing(HEARTBEAT.of(node_id="*"), beats.on_beat),
        ],
    )
