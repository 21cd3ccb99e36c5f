"""How long a run will hold its room, from earlier runs of the same MAP. Pure."""

from collections import OrderedDict
from collections.abc import Mapping
from statistics import median

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
