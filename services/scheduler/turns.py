"""Whose turn it is: priority, then fair shares of the projects, then short and long waited for. Pure.

1. `immediate` goes before all others. Of the rest a job rises to the next priority when it has waited for half a day.
2. Among equals, the project goes first that has had least of the cluster lately (`shares.py`), what it holds now, and
   what this plan gives it, counted in.
3. Within a project, the most urgent job (`urgency`): short runs, as earlier ones of the same MAP let expect, pass long
   ones, and whoever waits rises.
4. Then the older job, then the id.

A job that has waited for a day goes before all but `immediate` ones, by age alone: no wait is without bound.
"""

import bisect
import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, TypeVar

import numpy.typing as npt

from gurney.model.job import Priority, WaitReason
from gurney.model.resources import Quota
from services.scheduler.order import Entry, Key, Lane
from services.scheduler.predict import Durations
from services.scheduler.shape import MILLI
from services.scheduler.shares import Using

#: So much wait makes up for the next priority.
RISES_AFTER = timedelta(hours=12)
OVERDUE_AFTER = timedelta(days=1)
#: Shorter runs count as this, or who has waited for a moment would pass everybody.
SHORTEST_S = 10.0
#: The power of the run by which the response ratio is taken: 1 is the ratio itself, the larger the less waits count.
SHORT_FIRST = 1.5
#: The quota of projects that have none of their own.
ANY = "*"

_LEVELS = {Priority.HIGHER: 0, Priority.NORMAL: 1, Priority.LOWER: 2}
_IMMEDIATE, OVERDUE, _FIRST = 0, 1, 2

#: The least goes first: level, urgency (negative), age.
Rank = tuple[int, float, Key]
#: Beside jobs of other projects: level, share of the project, urgency (negative), age.
Place = tuple[int, float, float, Key]


T = TypeVar("T", float, npt.NDArray[Any])


def urgency(waited_s: T, run_s: T) -> T:
    """Return how urgent it is to start jobs that have waited so long, by what they are expected to run; seconds.

    The response ratio, wait and run over the run (highest response ratio next: Brinch Hansen, "Short-term scheduling in
    multiprogramming systems", SOSP 1971), with more weight on short runs: of jobs that have just come the shorter is
    the more urgent, by which the mean wait is least (Smith, "Various optimizers for single-stage production", Naval
    Research Logistics Quarterly 3, 1956).
    """
    found: T = (waited_s + run_s) / run_s**SHORT_FIRST
    return found


@dataclass(frozen=True)
class Rules:
    """What decides besides the jobs themselves, at one moment."""

    now: datetime
    #: Project -> what it has had of the cluster lately, from 0 to 1.
    had: Mapping[str, float] = field(default_factory=dict)
    durations: Durations = field(default_factory=Durations)
    quotas: Mapping[str, Quota] = field(default_factory=dict)

    def rank(self, entry: Entry) -> Rank:
        """Return what the jobs of a project are sorted by."""
        level = self.level(entry)
        if level < _FIRST:
            return level, 0.0, entry.key
        waited_s = max(0.0, (self.now - entry.request.created_at).total_seconds())
        return level, -urgency(waited_s, self.run_s(entry.lane)), entry.key

    def run_s(self, lane: Lane) -> float:
        """Return what the runs of a lane count as."""
        return max(SHORTEST_S, self.durations.expected(lane.digest))

    def level(self, entry: Entry) -> int:
        """Return what counts before all else, the least first: the priority, and what long waits make of it."""
        priority, since = entry.lane.priority, entry.key[0]
        if priority is Priority.IMMEDIATE:
            return _IMMEDIATE
        overdue, risen = self._since
        if since > risen:
            return _FIRST + _LEVELS[priority]
        return OVERDUE if since <= overdue else _FIRST + max(0, _LEVELS[priority] - 1)

    @cached_property
    def _since(self) -> tuple[datetime, ...]:
        """Who has waited since before then is overdue, has risen."""
        return self.now - OVERDUE_AFTER, self.now - RISES_AFTER

    def among(self, rank: Rank, project: str, holds: float) -> Place:
        """Return what jobs of all projects are sorted by; `holds`: what this one's holds now of the cluster."""
        level, urgent, key = rank
        return level, self.had.get(project, 0.0) + holds if level >= _FIRST else 0.0, urgent, key

    def ranking(self, using: Mapping[str, Using], whole: Using) -> Callable[[Entry], Place]:
        """Return what jobs are sorted by while their projects hold this much of the whole."""
        holds = {project: held.share_of(whole) for project, held in using.items()}
        return lambda each: self.among(self.rank(each), each.lane.project, holds.get(each.lane.project, 0.0))

    def over_quota(self, project: str, using: Using) -> WaitReason | None:
        """Return what of its quota a project would exceed that holds so much."""
        quota = self.quotas.get(project) or self.quotas.get(ANY)
        if quota is None:
            return None
        limits = (quota.cpu, quota.memory, quota.gpus)
        for used, limit, unit, name in zip(using, limits, (MILLI, 1, MILLI), ("cores", "bytes", "GPUs"), strict=True):
            if limit is not None and used > limit * unit:
                text = f"the project {project} may hold {limit:g} {name} at a time"
                return WaitReason(code="quota", count=0, message=text)
        return None


class Line:
    """The order of the jobs while a plan is made: a project that is given something comes later for more."""

    def __init__(
        self, groups: Iterable[Iterable[Sequence[Entry]]], rules: Rules, using: Mapping[str, Using], whole: Using
    ) -> None:
        """`groups` of lanes: each can be closed as a whole."""
        self._rules = rules
        self._using = dict(using)
        self._whole = whole
        self._holds = {project: held.share_of(whole) for project, held in using.items()}
        #: Each with the number of its group.
        self._lanes = [(lane, number) for number, group in enumerate(groups) for lane in group]
        self._closed: set[int] = set()
        #: Number of the lane whose turn it is, and the place in it.
        self._turn = (0, 0)
        #: Of each project, the numbers of its lanes.
        self._numbers: dict[str, list[int]] = defaultdict(list)
        for number, (lane, _) in enumerate(self._lanes):
            self._numbers[lane[0].lane.project].append(number)
        #: Of each project, the first of its lanes; found when its turn comes: by then most of them are closed.
        self._heads: dict[str, list[tuple[Rank, int, int]]] = {}

    def __iter__(self) -> Iterator[Entry]:
        """Yield who is next; more of its lane comes when `go_on` is called before the next one is asked for."""
        turns = [(self._earliest(project), project) for project in self._numbers]
        heapq.heapify(turns)
        while turns:
            _, project = heapq.heappop(turns)
            heads = self._heads.get(project)
            if heads is None:
                heads = self._heads[project] = self._ranked(project)
            else:
                _, number, place = heapq.heappop(heads)
                lane, group = self._lanes[number]
                if group not in self._closed:
                    self._turn = number, place
                    yield lane[place]
            while heads and self._lanes[heads[0][1]][1] in self._closed:
                heapq.heappop(heads)
            if heads:  # by now it may have been given something
                heapq.heappush(turns, (self._front(project), project))

    @property
    def rank(self) -> Callable[[Entry], Place]:
        """What jobs are sorted by, with what their projects hold now."""
        return self._rules.ranking(self._using, self._whole)

    @property
    def projects(self) -> Mapping[str, Using]:
        """What each project holds, with what it was given."""
        return self._using

    def over_quota(self, project: str, more: Using) -> WaitReason | None:
        """Return what of its quota a project would exceed that is given this much more."""
        if not self._rules.quotas:
            return None
        return self._rules.over_quota(project, self._with(project, more))

    def give(self, project: str, more: Using) -> None:
        """Count what a project is given."""
        held = self._using[project] = self._with(project, more)
        self._holds[project] = held.share_of(self._whole)

    def _with(self, project: str, more: Using) -> Using:
        return self._using.get(project, Using()).plus(more)

    def go_on(self) -> None:
        """Let the next one of the lane whose turn it is come, when it is its turn."""
        number, place = self._turn[0], self._turn[1] + 1
        lane, _ = self._lanes[number]
        if place < len(lane):
            head = (self._rules.rank(lane[place]), number, place)
            heapq.heappush(self._heads[lane[place].lane.project], head)

    def close(self) -> None:
        """Let no more come of the group whose turn it is."""
        self._closed.add(self._lanes[self._turn[0]][1])

    def _ranked(self, project: str) -> list[tuple[Rank, int, int]]:
        lanes = ((number, *self._lanes[number]) for number in self._numbers[project])
        heads = [(self._rules.rank(lane[0]), number, 0) for number, lane, group in lanes if group not in self._closed]
        heapq.heapify(heads)
        return heads

    def _front(self, project: str) -> Place:
        return self._rules.among(self._heads[project][0][0], project, self._holds.get(project, 0.0))

    def _earliest(self, project: str) -> Place:
        """Return what no job of a project goes before: levels are found much faster than ranks."""
        first = [self._lanes[number][0][0] for number in self._numbers[project]]
        rank = min(map(self._rules.level, first)), -math.inf, first[0].key
        return self._rules.among(rank, project, self._holds.get(project, 0.0))


def ahead(entry: Entry, lanes: Iterable[Sequence[Entry]], rank: Callable[[Entry], Place]) -> list[Sequence[Entry]]:
    """Return the part of each lane that goes before a job: in a lane the older one always does."""
    mine = rank(entry)
    return [lane[: bisect.bisect_left(lane, mine, key=rank)] for lane in lanes]
