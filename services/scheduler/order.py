"""Who comes first: priority, then age, and ageing. Pure.

A priority is a head start: a job counts as if it had been made so much earlier. So `higher` goes before `normal`, yet a
job that has waited longer than the head start goes before newer ones of the next priority, and nobody starves.
`immediate` goes before all others, however old. The order of two jobs never changes, so it is kept, not computed again.
"""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from gurney.model.job import PlacementRequest, Priority
from services.scheduler.shape import Shape, shape_of

HEAD_START: dict[Priority, timedelta] = {
    Priority.LOWER: timedelta(hours=-1),
    Priority.NORMAL: timedelta(),
    Priority.HIGHER: timedelta(hours=1),
    Priority.IMMEDIATE: timedelta(days=3650),
}

#: What jobs are sorted by, the first first.
Key = tuple[datetime, str]


@dataclass(frozen=True, slots=True)
class Entry:
    """A job that waits for a placement."""

    key: Key
    shape: Shape
    request: PlacementRequest
    #: When the scheduler heard of it.
    since: datetime
    #: Trace context of what brought it here.
    traceparent: str | None = None

    @property
    def job_id(self) -> str:
        return self.request.job_id


def entry_of(request: PlacementRequest, now: datetime, traceparent: str | None = None) -> Entry:
    """Return the entry of a request. A later attempt keeps the job's age."""
    key = (request.created_at - HEAD_START[request.priority], request.job_id)
    return Entry(key, shape_of(request.request, request.avoid), request, now, traceparent)


class Queue:
    """The jobs that wait, in order, one lane for each shape."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._lanes: dict[Shape, list[Entry]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def lanes(self) -> Mapping[Shape, Sequence[Entry]]:
        return self._lanes

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
        bisect.insort(self._lanes.setdefault(entry.shape, []), entry, key=_key)
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
        lane = self._lanes[entry.shape]
        del lane[bisect.bisect_left(lane, entry.key, key=_key)]
        if not lane:
            del self._lanes[entry.shape]

    def position(self, job_id: str) -> int:
        """Return how many go before the job, itself counted."""
        key = self._entries[job_id].key
        return 1 + sum(bisect.bisect_left(lane, key, key=_key) for lane in self._lanes.values())

    def with_one_more(self, entry: Entry) -> Mapping[Shape, Sequence[Entry]]:
        """Return the lanes as they would be with this job; the queue stays as it is."""
        lane = list(self._lanes.get(entry.shape, ()))
        bisect.insort(lane, entry, key=_key)
        return {**self._lanes, entry.shape: lane}


def _key(entry: Entry) -> Key:
    return entry.key
