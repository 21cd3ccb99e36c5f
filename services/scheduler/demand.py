"""What is mostly asked: the tasks against which fragmentation is measured. Pure.

Each request counts, and counts less as time goes by. Typical are the most frequent shapes that together make up most of
what was asked, as in the FGD paper (Weng et al., "Beware of Fragmentation", USENIX ATC'23).
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple

from services.scheduler.shape import Shape

#: The share of all requests that the typical ones make up at least.
COVERED = 0.95
#: A request counts half as much after this time.
HALF_LIFE = timedelta(days=1)
#: What is typical is looked at anew when this share of all that counts has come since.
STALE_AT = 0.25
#: What tells the MAPs of one runtime from those of another.
SCHEME = re.compile(r"urn:(oci|gurney:[a-z]+):")
#: What counts less than this is forgotten.
LEAST = 0.01


class Typical(NamedTuple):
    """A shape, and the share of requests that ask it."""

    shape: Shape
    share: float


def typical_of(counts: Mapping[Shape, float]) -> tuple[Typical, ...]:
    """Return the most frequent shapes that cover most requests; their shares add up to one."""
    found: list[tuple[Shape, float]] = []
    left = COVERED * sum(counts.values())
    for shape, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if left <= 0:
            break
        found.append((shape, count))
        left -= count
    total = sum(count for _, count in found)
    return tuple(Typical(shape, count / total) for shape, count in found)


def task_of(shape: Shape) -> Shape:
    """Return a shape without what says nothing about room: which of the MAPs of a kind it is, and what it avoids."""
    scheme = SCHEME.match(shape.urn)
    return replace(shape, urn=scheme[0] if scheme else shape.urn, avoid=())


class Demand:
    """Counts requests; one per scheduler."""

    def __init__(self) -> None:
        self._counts: dict[Shape, float] = {}
        self._at: datetime | None = None
        self._total = 0.0
        #: Of the total, what came since the typical ones were looked at.
        self._news = 0.0
        self._typical: tuple[Typical, ...] = ()

    def saw(self, shape: Shape, now: datetime) -> None:
        """Count a request."""
        self._decay(now)
        task = task_of(shape)
        self._counts[task] = self._counts.get(task, 0.0) + 1.0
        self._total += 1.0
        self._news += 1.0

    @property
    def typical(self) -> tuple[Typical, ...]:
        """What is typical; the same for some time, so that what is derived from it can be kept."""
        if self._news > STALE_AT * (self._total - self._news):
            self._typical, self._news = typical_of(self._counts), 0.0
        return self._typical

    def _decay(self, now: datetime) -> None:
        """Let all counts fade, in steps: a step for each request would cost more than it tells."""
        if self._at is None or now < self._at:
            self._at = now
        if now - self._at >= HALF_LIFE / 16:
            fade = 0.5 ** ((now - self._at) / HALF_LIFE)
            self._counts = {task: count * fade for task, count in self._counts.items() if count * fade >= LEAST}
            self._total = sum(self._counts.values())
            self._news = min(self._news * fade, self._total)
            self._at = now
