"""Puts the agent together."""

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from gurney.errors import Unavailable
from gurney.heartbeats import Heartbeats
from gurney.runtime.port import Runtime
from gurney.service import Parts, Service
from gurney.settings import Settings
from gurney.streams import agent_runs
from gurney.transfer import pooled
from services.agent.claim import Claim
from services.agent.contents import Contents
from services.agent.disk import Disk
from services.agent.effects import Effects
from services.agent.gpu_meter import Meter
from services.agent.gpu_probe import Probes
from services.agent.gpus import Gpus
from services.agent.handlers import Handlers
from services.agent.heartbeat import Heart
from services.agent.holdings import Holdings
from services.agent.host import Host
from services.agent.identity import Identity
from services.agent.inspection import Inspector
from services.agent.journal import Journal
from services.agent.leases import Leases
from services.agent.live_log import LiveLog
from services.agent.patience import Crew
from services.agent.supervisor import Supervisor
from services.agent.sweep import Sweep

#: Files that the runs of this host move at once.
TRANSFERS = 8


def build(settings: Settings, *, runtimes: Sequence[Runtime], alone: bool = False) -> Service:
    """Return the agent of this host, ready to be entered. `alone`: no other host takes its runs: they wait for it."""
    service = Service("agent", settings)
    folder = Path(settings.data).absolute() / "agent"
    effects = Effects(service.bus, settings.node, Crew())
    live_log = LiveLog(settings.node, service.bus.publish)
    gpus = Gpus(settings)
    contents = Contents(folder / "content", folder / "work", settings.content_cache)
    host = Host(
        settings=settings,
        bus=service.bus,
        journal=Journal(folder / "journal"),
        leases=Leases(None if alone else settings.run_lease or None),
        effects=effects,
        live_log=live_log,
        lanes=asyncio.Semaphore(TRANSFERS),
        work=folder / "work",
        disk=Disk(folder / "work"),
        contents=contents,
        holdings=Holdings([contents.digests, *(runtime.held for runtime in runtimes)], settings.heartbeat_interval),
        gpus=gpus,
        meter=Meter(gpus),
        probes=Probes(0.0 if gpus.simulated else settings.gpu_probe_interval),
    )
    supervisor = Supervisor(host, runtimes)
    identity = Identity(folder)
    claim = Claim(Heartbeats(service.bus), settings.node, identity)
    heart = Heart(host, supervisor, identity, claim)
    inspector = Inspector(settings.node, effects, supervisor.runtime_for, host.holdings)
    handlers = Handlers(settings.node, supervisor, inspector)
    return service.does(
        Parts(
            consumers={agent_runs(settings.node): handlers.command},
            reconcile=heart.soon,
            tasks=(
                heart.beat,
                live_log.run,
                host.disk.run,
                host.holdings.run,
                host.meter.run,
                Sweep(host, supervisor, runtimes).sweep,
            ),
            resources=(identity, claim, pooled(), effects, gpus, supervisor, heart),
            checks={runtime.name: partial(_can_begin, runtime) for runtime in runtimes},
        )
    )


async def _can_begin(runtime: Runtime) -> None:
    """Raise `Unavailable` where a runtime can begin no run now."""
    if runtime.fault is not None:
        raise Unavailable(runtime.fault)
