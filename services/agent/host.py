"""What all runs of this host share."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from gurney.bus import Bus
from gurney.settings import Settings
from services.agent.contents import Contents
from services.agent.disk import Disk
from services.agent.effects import Effects
from services.agent.gpu_meter import Meter
from services.agent.gpu_probe import Probes
from services.agent.gpus import Gpus
from services.agent.holdings import Holdings
from services.agent.journal import Journal
from services.agent.leases import Leases
from services.agent.live_log import LiveLog


@dataclass(frozen=True)
class Host:
    """Made once, in `build`."""

    settings: Settings
    bus: Bus
    journal: Journal
    leases: Leases
    effects: Effects
    live_log: LiveLog
    #: Bounds the transfers of all runs together.
    lanes: asyncio.Semaphore
    #: Below it each run has its folders.
    work: Path
    contents: Contents
    holdings: Holdings
    disk: Disk
    gpus: Gpus
    meter: Meter
    probes: Probes
