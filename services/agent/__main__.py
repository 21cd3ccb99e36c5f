"""Puts the agent together."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from gurney.ids import new_secret
from gurney.runtime.port import Runtime
from gurney.service import Parts, Service
from gurney.settings import Settings
from gurney.streams import agent_runs
from services.agent.effects import Effects
from services.agent.handlers import Handlers
from services.agent.heartbeat import Heart
from services.agent.host import Host
from services.agent.inspection import Inspector
from services.agent.journal import Journal
from services.agent.live_log import LiveLog
from services.agent.patience import Crew
from services.agent.supervisor import Supervisor

#: Files that the runs of this host move at once.
TRANSFERS = 8


def build(settings: Settings, *, runtimes: Sequence[Runtime]) -> Service:
    """Return the agent of this host, ready to be entered."""
    service = Service("agent", settings)
    folder = Path(settings.data).absolute() / "agent"
    effects = Effects(service.bus, settings.node, Crew())
    live_log = LiveLog(settings.node, service.bus.publish)
    host = Host(
        settings=settings,
        bus=service.bus,
        journal=Journal(folder / "journal"),
        effects=effects,
        live_log=live_log,
        lanes=asyncio.Semaphore(TRANSFERS),
        work=folder / "work",
    )
    supervisor = Supervisor(host, runtimes)
    heart = Heart(settings, effects, supervisor, incarnation=new_secret())
    handlers = Handlers(settings.node, supervisor, Inspector(settings.node, effects, supervisor.runtime_for))
    return service.does(
        Parts(
            consumers={agent_runs(settings.node): handlers.command},
            reconcile=heart.soon,
            tasks=(heart.beat, live_log.run),
            resources=(effects, supervisor),
        )
    )
