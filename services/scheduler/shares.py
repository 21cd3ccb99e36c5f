"""What each project has of the cluster, and has had: the younger the use, the more it counts. Pure.

A use is the largest of the shares that it has of the cluster's GPUs, cores and memory (Ghodsi et al., "Dominant
Resource Fairness", NSDI'11). What is over decays by a half-life, as in Slurm's multifactor priority. So a project that
had much yesterday stands behind one that had nothing, and not for ever.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from services.scheduler.shape import MILLI, NEVER, Device, Shape, takes

HALF_LIFE = timedelta(hours=8)

#: What is left of a project's use when it is forgotten: after ten days, if it had the whole cluster.
LEAST = 1e-9

#: Seconds by which a steady use weighs: that of a cluster used whole and for ever comes to 1.
_MEAN_LIFE_S = HALF_LIFE.total_seconds() / math.log(2)


class Using(NamedTuple):
    """What a project holds, or a cluster has: cpu in thousandths of a core, bytes, thousandths of GPUs."""

    cpu: int = 0
    memory: int = 0
    gpus: int = 0

    def plus(self, more: "Using") -> "Using":
        return Using(self.cpu + more.cpu, self.memory + more.memory, self.gpus + more.gpus)

    def minus(self, less: "Using") -> "Using":
        return Using(self.cpu - less.cpu, self.memory - less.memory, self.gpus - less.gpus)

    def share_of(self, whole: "Using") -> float:
        """Return the dominant share."""
        return max((mine / of for mine, of in zip(self, whole, strict=True) if of), default=0.0)


def asks(shape: Shape, device: Device | None) -> Using:
    """Return what a shape takes, of GPUs such as this one."""
    part = MILLI
    if device and shape.gpu_share and (mib := takes(device, shape)) < NEVER:
        part = -(-MILLI * mib // device.mib)
    return Using(shape.cpu, shape.memory, shape.gpus * part)


@dataclass(frozen=True, slots=True)
class Past:
    """What a project had until `at`, in units of the whole cluster in steady use."""

    value: float
    at: datetime

    def now(self, now: datetime) -> float:
        """Return what is left of it; clocks that go backwards take nothing away."""
        return self.value * _left((now - self.at).total_seconds())

    def with_use(self, share: float, begin: datetime, end: datetime) -> "Past":
        """Return the past with a use of this share of the cluster more, `end` being the youngest moment of all."""
        at = max(self.at, end)
        used = share * (_left((at - end).total_seconds()) - _left((at - begin).total_seconds()))
        return Past(self.now(at) + max(0.0, used), at)


def _left(seconds: float) -> float:
    return math.exp(-max(0.0, seconds) / _MEAN_LIFE_S)


class Shares:
    """Of all projects."""

    def __init__(self) -> None:
        self._past: dict[str, Past] = {}

    def ended(self, project: str, share: float, begin: datetime, end: datetime) -> None:
        """Note a use that is over."""
        self._past[project] = self._past.get(project, Past(0.0, begin)).with_use(share, begin, end)

    def recall(self, project: str, past: Past) -> None:
        """Begin with what a project had before."""
        self._past[project] = past

    def pasts(self, now: datetime) -> Mapping[str, Past]:
        """Return what is to be handed on; what has faded away is forgotten."""
        self._past = {project: past for project, past in self._past.items() if past.now(now) >= LEAST}
        return self._past

    def had(self, now: datetime) -> Mapping[str, float]:
        """Return what projects have had: 0 for nothing, 1 for the whole cluster all the time."""
        return {project: past.now(now) for project, past in self._past.items()}
