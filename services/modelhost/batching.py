"""Which requests run together, and whose turn it is. Pure: what happened goes in, what is to be done comes out.

One run goes on at a time. What waits of one model when a run begins is run together, as far as it fits; nobody waits
for others to come. Between models the turn goes to the one that has used least time, so that a slow one takes no more
than its share. Every request that arrives is settled once: answered, failed or refused; who has left hears nothing.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, assert_never

#: Seconds that a run counts at least: else the turn would never leave a model whose runs are too short to be measured.
SHORTEST_S = 1e-6

# --- what happens ---


@dataclass(frozen=True)
class Limits:
    """What a model takes. `rows`: of one run, and so of one request; `waiting`: rows that may wait for their turn."""

    rows: int
    waiting: int
    #: Whether requests may be run together: their first dimension is that of rows.
    joins: bool = True


@dataclass(frozen=True)
class Opened:
    """A model may be asked; one that is open already has other limits from now on."""

    model: str
    limits: Limits


@dataclass(frozen=True)
class Closed:
    """A model is asked no more. What runs is answered, what waits is refused."""

    model: str


@dataclass(frozen=True)
class Arrived:
    """A request came. Only those whose `like` is equal run together: version, types, dimensions behind the first."""

    #: Another for each request.
    id: int
    model: str
    #: One at least.
    rows: int
    like: Hashable = None
    #: When nobody waits for the answer any more, on the clock of `now`.
    until: float = float("inf")


@dataclass(frozen=True)
class Left:
    """Nobody waits for this request any more."""

    id: int


@dataclass(frozen=True)
class Tick:
    """All that came at once is here: a run may begin."""


@dataclass(frozen=True)
class Ended:
    """The run is over, and took so long."""

    seconds: float


@dataclass(frozen=True)
class Broke:
    """The run failed, and took so long. Where there were several in it, the guilty one is looked for."""

    seconds: float


Event = Opened | Closed | Arrived | Left | Tick | Ended | Broke

# --- what is to be done ---

Refusal = Literal["unknown", "too_large", "full", "late", "closed"]


@dataclass(frozen=True)
class Run:
    """Run these requests together, in this order; the next event about it is `Ended` or `Broke`."""

    model: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """The request has its part of the outputs of the run that ended."""

    id: int


@dataclass(frozen=True)
class Fail:
    """The request has the error of the run that broke: it was alone in it."""

    id: int


@dataclass(frozen=True)
class Refuse:
    """The request was not run: another host may, but for one that is too large."""

    id: int
    why: Refusal


Effect = Run | Answer | Fail | Refuse


@dataclass(eq=False)
class _Queue:
    """Requests of one model by their ids, the oldest first."""

    limits: Limits
    waiting: dict[int, Arrived] = field(default_factory=dict)
    #: Those that were in a run that broke: each runs alone, before the others.
    suspects: dict[int, Arrived] = field(default_factory=dict)
    rows: int = 0
    #: Seconds used; it begins where the others are.
    used: float = 0.0

    def take(self, request: int) -> None:
        """Take a request out."""
        self.rows -= (self.suspects.pop(request, None) or self.waiting.pop(request)).rows


class Batcher:
    """The requests of one worker."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        #: Where each request waits.
        self._waiting: dict[int, _Queue] = {}
        #: What runs; those that left are not in `_awaited`.
        self._running: tuple[Arrived, ...] = ()
        self._awaited: set[int] = set()
        #: What the model whose turn it was last had used before it.
        self._level = 0.0

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._waiting)

    def on(self, event: Event, now: float) -> list[Effect]:
        """Return what is to be done, in this order."""
        return list(self._on(event, now))

    def _on(self, event: Event, now: float) -> Iterator[Effect]:
        match event:
            case Opened(model, limits):
                self._queues.setdefault(model, _Queue(limits, used=self._level)).limits = limits
            case Closed(model):
                yield from self._closed(model)
            case Arrived():
                yield from self._arrived(event)
            case Left(request):
                self._left(request)
            case Tick():
                yield from self._next(now)
            case Ended(seconds):
                yield from (Answer(each.id) for each in self._over(seconds))
                yield from self._next(now)
            case Broke(seconds):
                yield from self._broke(seconds)
                yield from self._next(now)
            case _:
                assert_never(event)

    def _closed(self, model: str) -> Iterator[Effect]:
        queue = self._queues.pop(model, None)
        if queue is None:
            return
        for request in (*queue.suspects, *queue.waiting):
            del self._waiting[request]
            yield Refuse(request, "closed")

    def _arrived(self, request: Arrived) -> Iterator[Effect]:
        queue = self._queues.get(request.model)
        if queue is None:
            yield Refuse(request.id, "unknown")
        elif request.rows > queue.limits.rows:
            yield Refuse(request.id, "too_large")
        elif queue.rows + request.rows > queue.limits.waiting:
            yield Refuse(request.id, "full")
        else:
            if not queue.rows:  # what it did not use while it had nothing to do is gone
                queue.used = max(queue.used, self._level)
            queue.waiting[request.id] = request
            self._wait(request, queue)

    def _wait(self, request: Arrived, queue: _Queue) -> None:
        queue.rows += request.rows
        self._waiting[request.id] = queue

    def _left(self, request: int) -> None:
        self._awaited.discard(request)
        if request in self._waiting:
            self._take(request)

    def _take(self, request: int) -> None:
        self._waiting.pop(request).take(request)

    def _broke(self, seconds: float) -> Iterator[Effect]:
        over = self._over(seconds)
        if len(over) == 1:
            yield Fail(over[0].id)
            return
        for each in over:
            queue = self._queues.get(each.model)
            if queue is None:
                yield Refuse(each.id, "closed")
            else:
                queue.suspects[each.id] = each
                self._wait(each, queue)

    def _over(self, seconds: float) -> list[Arrived]:
        """Charge the model for what ran, and return what of it is waited for."""
        if not self._running:
            raise ValueError("nothing runs")
        over, self._running = self._running, ()
        queue = self._queues.get(over[0].model)
        if queue is not None:
            queue.used += max(seconds, SHORTEST_S)
        return [each for each in over if each.id in self._awaited]

    def _next(self, now: float) -> Iterator[Effect]:
        """Begin the run of the model that has used least, where nothing runs and something waits."""
        while not self._running:
            queue = min((each for each in self._queues.values() if each.rows), key=lambda each: each.used, default=None)
            if queue is None:
                return
            self._level = queue.used
            batch, refused = _first(queue, now)
            for request in (*(each.id for each in batch), *(each.id for each in refused)):
                self._take(request)
            yield from refused
            if batch:
                self._running, self._awaited = tuple(batch), {each.id for each in batch}
                yield Run(batch[0].model, tuple(each.id for each in batch))


def _first(queue: _Queue, now: float) -> tuple[list[Arrived], list[Refuse]]:
    """Return what runs together, the oldest first, and what is refused on the way."""
    batch: list[Arrived] = []
    refused: list[Refuse] = []
    rows = 0
    for request in chain(queue.suspects.values(), queue.waiting.values()):
        if request.until <= now:
            refused.append(Refuse(request.id, "late"))
        elif request.rows > queue.limits.rows:  # they were wider when it came
            refused.append(Refuse(request.id, "too_large"))
        elif batch and request.like != batch[0].like:
            continue
        elif rows + request.rows > queue.limits.rows:
            break
        else:
            batch.append(request)
            rows += request.rows
            if request.id in queue.suspects or not queue.limits.joins:
                break
    return batch, refused
