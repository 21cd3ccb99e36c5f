"""Questions that come too late are not carried out: their askers have given up, and may have asked for something else.

A question may wait in a process or a message server that rests (stopped, on a paused virtual machine) and would be
carried out when that goes on, after what was asked for meanwhile. Clocks of hosts differ, so it carries no deadline:
it says when it was sent by the asker's own clock, and how long he waits. The least that his questions ever took by the
two clocks is how far these are apart; what a question takes beyond that, it has waited. An asker who is told that he is
late while he still waits has a clock that jumped: he takes another name, and asks again.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from gurney import clock
from gurney.ids import new_asker

HEADER = "Gurney-Asked"
#: Seconds by which the clocks of two hosts come apart in one second, at most.
DRIFT = 2e-4
#: Askers that are remembered; the one that was silent for longest is forgotten.
MOST = 4096


@dataclass
class Asker:
    """Who asks, by a name that no other process has."""

    name: str = field(default_factory=new_asker)

    def header(self, patience_s: float) -> str:
        """Return what a question says that is sent now: who asks, when, and for how long he waits."""
        return f"{self.name} {clock.monotonic():.3f} {patience_s:.3f}"

    def rename(self) -> None:
        """Be somebody whose clock nobody knows yet."""
        self.name = new_asker()


class Askers:
    """Those who have asked here, by how far their clocks are from ours."""

    def __init__(self) -> None:
        #: Name -> least difference, and when it was that.
        self._known: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def is_late(self, header: str | None) -> bool:
        """Tell whether the asker of a question that is about to be carried out no longer waits for it.

        A header of another form says nothing; the first question of an asker is never late.
        """
        try:
            name, sent, patience = (header or "").split()
            return self._waited(name, float(sent), clock.monotonic()) > float(patience)
        except ValueError:
            return False

    def _waited(self, name: str, sent: float, now: float) -> float:
        took = now - sent
        least, at = self._known.pop(name, (took, now))
        least = min(took, least + DRIFT * (now - at))
        self._known[name] = least, now
        if len(self._known) > MOST:
            self._known.popitem(last=False)
        return took - least
