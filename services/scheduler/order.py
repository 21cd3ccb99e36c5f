"""The jobs that wait: a lane for those that are alike in all but their age, the oldest first. Pure.

Which lane's turn it is, is found anew for each plan (`turns.py`).
"""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from gurney.model.job import PlacementRequest, Priority
from services.scheduler.shape import Shape, shape_of

#: What jobs of a lane are sorted by, the first first: when they were made, and their ids.
Key = tuple[datetime, str]


class Lane(NamedTuple):
    """What jobs have in common that go one after the other."""

    project: str
    priority: Priority
    #: Of their MAP.
    digest: str
    shape: Shape


Lanes = Mapping[Lane, "Sequence[Entry]"]
#: The lanes by what they ask: where one finds no room, none of the same shape does.
Shapes = Mapping[Shape, Lanes]


@dataclass(frozen=True, slots=True)
class Entry:
    """A job that waits for a placement."""

    key: Key
    lane: Lane
    request: PlacementRequest
    #: When the scheduler heard of it.
    since: datetime
    #: Trace context of what brought it here.
    traceparent: str | None = None

    @property
    def job_id(self) -> str:
        return self.request.job_id

    @property
    def shape(self) -> Shape:
        return self.lane.shape


def entry_of(request: PlacementRequest, now: datetime, traceparent: str | None = None) -> Entry:
    """Return the entry of a request. A later attempt keeps the job's age."""
    run = request.request
    lane = Lane(request.project, request.priority, run.digest, shape_of(run, request.avoid))
    return Entry((request.created_at, request.job_id), lane, request, now, traceparent)


def alone(entry: Entry) -> Shapes:
    """Return a job that waits alone."""
    return {entry.shape: {entry.lane: [entry]}}


def lanes_of(shapes: Shapes) -> Lanes:
    return {lane: entries for lanes in shapes.values() for lane, entries in lanes.items()}


def waits(waiting: Shapes, entry: Entry) -> bool:
    """Tell whether a job waits, and at this attempt."""
    lane = waiting.get(entry.shape, {}).get(entry.lane, ())
    place = bisect.bisect_left(lane, entry.key, key=_key)
    return place < len(lane) and lane[place] is entry


class Queue:
    """The jobs that wait."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._shapes: dict[Shape, dict[Lane, list[Entry]]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def shapes(self) -> Shapes:
        return self._shapes

    @property
    def lanes(self) -> Lanes:
        return lanes_of(self._shapes)

    def get(self, job_id: str) -> Entry | None:
        return self._entries.get(job_id)

    def add(self, entry: Entry) -> bool:
        """Take a job in; a later attempt replaces an earlier one, the same one stays as it is; tells if it is new."""
        known = self._entries.get(entry.job_id)
        if known:
            if known.request.attempt >= entry.request.attempt:
                return False
            self.drop(entry.job_id)
        self._entries[entry.job_id] = entry
        bisect.insort(self._shapes.setdefault(entry.shape, {}).setdefault(entry.lane, []), entry, key=_key)
        return True

    def heard_before(self, at: datetime) -> set[str]:
        """Return the jobs that have been here since before `at`."""
        return {entry.job_id for entry in self._entries.values() if entry.since < at}

    def drop(self, job_id: str, attempt: int | None = None) -> None:
        """Take a job out, if it is there (and at this attempt)."""
        entry = self._entries.get(job_id)
        if entry is None or attempt not in {None, entry.request.attempt}:
            return
        del self._entries[job_id]
        lanes = self._shapes[entry.shape]
        lane = lanes[entry.lane]
        del lane[bisect.bisect_left(lane, entry.key, key=_key)]
        if not lane:
            del lanes[entry.lane]
        if not lanes:
            del self._shapes[entry.shape]

    def with_one_more(self, entry: Entry) -> Shapes:
        """Return the lanes as they would be with this job; the queue stays as it is."""
        lanes = self._shapes.get(entry.shape, {})
        lane = list(lanes.get(entry.lane, ()))
        bisect.insort(lane, entry, key=_key)
        return {**self._shapes, entry.shape: {**lanes, entry.lane: lane}}


def _key(entry: Entry) -> Key:
    return entry.key
