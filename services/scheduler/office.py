"""What all parts of one tenure share. Made anew for each: only documents remember from one to the next."""

from dataclasses import dataclass

from gurney.bus import Bus
from gurney.service import Service
from gurney.store import Store
from services.scheduler.cluster import Cluster
from services.scheduler.effects import Effects
from services.scheduler.presence import Presence
from services.scheduler.tenure import Tenure


@dataclass(frozen=True)
class Office:
    """Made once per tenure."""

    service: Service
    #: Writes for the leader only.
    store: Store
    tenure: Tenure
    cluster: Cluster
    presence: Presence
    effects: Effects

    @property
    def bus(self) -> Bus:
        return self.service.bus
