"""How long a run will hold its room, from earlier runs of the same MAP, and when a node has room for another. Pure."""

from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime
from statistics import median
from typing import NamedTuple

from services.scheduler.shape import NEVER, Shape, takes
from services.scheduler.snapshot import Held, NodeView

#: Seconds that a run is taken to hold its room of whose MAP nothing is known.
UNKNOWN_S = 600.0
#: Runs of a MAP that are remembered, and MAPs.
RUNS, MAPS = 32, 1024


class Durations:
    """Seconds, by the digest of the MAP; the least recently noted goes first."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[float, ...]] = OrderedDict()
        #: Asked for far more often than something is noted.
        self._medians: dict[str, float] = {}

    @property
    def known(self) -> Mapping[str, tuple[float, ...]]:
        """What is remembered: of each MAP the oldest run first."""
        return self._known

    def note(self, digest: str, *seconds: float) -> None:
        """Remember runs that came to their end by themselves: one at least."""
        known = self._known[digest] = (*self._known.get(digest, ()), *seconds)[-RUNS:]
        self._known.move_to_end(digest)
        self._medians[digest] = median(known)
        if len(self._known) > MAPS:
            del self._medians[self._known.popitem(last=False)[0]]

    def expected(self, digest: str) -> float:
        """Return the median, or `UNKNOWN_S` where nothing is known."""
        return self._medians.get(digest, UNKNOWN_S)

    def left_s(self, held: Held, now: datetime) -> float:
        """Return the seconds that a run has left; one that is over what was expected is taken to be halfway."""
        expected = self.expected(held.digest)
        elapsed = max(0.0, (now - held.since).total_seconds()) if held.since else 0.0
        return expected - elapsed if elapsed < expected else elapsed


class Opening(NamedTuple):
    """When a node has room for a shape, if nothing more is placed there."""

    in_s: float
    #: UUIDs of the GPUs that have room then, those that have it first; as many as are asked.
    gpus: tuple[str, ...]
    #: Run ids of those that end before.
    after: tuple[str, ...]


def opening(view: NodeView, shape: Shape, durations: Durations, now: datetime) -> Opening | None:
    """Return when a node has room for a shape; None where that cannot be told, or never."""
    ends = sorted((durations.left_s(held, now), held.run_id, held) for held in view.held)
    parts = {uuid: part for uuid, device in view.devices.items() if (part := takes(device, shape)) < NEVER}
    free = dict(view.free_mib)
    gpus = [uuid for uuid, part in parts.items() if free[uuid] >= part]
    cpu, memory, over = view.free_cpu, view.free_memory, 0
    while cpu < shape.cpu or memory < shape.memory or len(gpus) < shape.gpus:
        if over == len(ends):
            return None
        held = ends[over][2]
        over += 1
        cpu, memory = cpu + held.cpu, memory + held.memory
        for uuid in filter(parts.__contains__, held.gpus):
            free[uuid] += held.share or view.devices[uuid].mib
            if free[uuid] >= parts[uuid] and uuid not in gpus:
                gpus.append(uuid)
    before = [held for _, _, held in ends[:over]]
    in_s = ends[over - 1][0] if over else 0.0
    return Opening(in_s, tuple(gpus[: shape.gpus]), tuple(held.run_id for held in before))
