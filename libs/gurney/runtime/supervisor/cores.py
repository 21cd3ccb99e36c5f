"""Which processors a run is pinned to."""

from __future__ import annotations

import math
import os


class Cores:
    """Spreads runs over the processors that we may use, the least used first."""

    def __init__(self) -> None:
        self._load: dict[int, float] = dict.fromkeys(sorted(os.sched_getaffinity(0)), 0.0)

    def take(self, cpu: float) -> list[int]:
        """Return the processors for a run, none where it is not pinned: it asked for part of one, or for all."""
        wanted = math.ceil(cpu)
        if cpu < 1 or wanted >= len(self._load):
            return []
        chosen = sorted(sorted(self._load, key=lambda core: self._load[core])[:wanted])
        self.hold(chosen, cpu)
        return chosen

    def hold(self, chosen: list[int], cpu: float) -> None:
        for core in chosen:
            self._load[core] = self._load.get(core, 0.0) + cpu / len(chosen)

    def release(self, chosen: list[int], cpu: float) -> None:
        self.hold(chosen, -cpu)
