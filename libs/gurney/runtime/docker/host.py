"""What the runs of one host share."""

from dataclasses import dataclass

from gurney.runtime.docker.daemon import Daemon
from gurney.runtime.docker.house import House
from gurney.runtime.docker.logs import LogPump
from gurney.runtime.docker.records import Records


@dataclass(frozen=True, slots=True)
class Host:
    """The daemon, and where things are."""

    daemon: Daemon
    house: House
    records: Records
    pump: LogPump
    #: Seconds between SIGTERM and SIGKILL at a timeout.
    grace_s: float
