"""Tasks that come at their times, wait, run for as long as they say, and leave: a replay on a virtual clock."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from gurney.model.run import Node
from services.scheduler.demand import Typical
from services.scheduler.forecast import outlook
from services.scheduler.order import Entry, Queue, alone
from services.scheduler.plan import Decision
from services.scheduler.predict import Durations
from services.scheduler.shares import Shares
from services.scheduler.turns import Rules
from services.simulate.fill import typical
from services.simulate.trace import Task
from services.simulate.world import World, entry_of, moment

#: GPUs from which on a job counts as wide.
WIDE = 4
#: Seconds that a run counts at least where its wait is compared with it.
SHORT_S = 10.0


@dataclass(slots=True)
class Replayed:
    """What became of the tasks."""

    #: Each that ran, with the seconds that it waited.
    waits: list[tuple[Task, float]] = field(default_factory=list)
    #: Those that no node could ever hold.
    never: int = 0
    #: Per cent of GPU units given, mean over the time in which tasks came.
    allocation: float = 0.0
    decision_ms: list[float] = field(default_factory=list)
    #: Seconds, per cent given, jobs that wait.
    curve: list[tuple[float, float, int]] = field(default_factory=list)


Order = Literal["gurney", "skip", "fifo"]


class ByAge(Rules):
    """The yardstick: the oldest first."""

    def level(self, entry: Entry) -> int:  # noqa: ARG002
        return 0


def replay(
    nodes: Sequence[Node], tasks: Sequence[Task], against: tuple[Typical, ...], order: Order = "gurney"
) -> Replayed:
    """Run the tasks.

    The yardsticks go by age, and keep nothing free: with `skip` what does not fit is passed, with `fifo` nobody passes
    one that waits.
    """
    return _Replay(nodes, tasks, against, order).run()


def estimates(nodes: Sequence[Node], tasks: Sequence[Task], every: int) -> list[tuple[float, float]]:
    """Return the wait that was told to each `every`-th task that had to wait, and its wait: seconds, 1 at least."""
    run = _Replay(nodes, tasks, typical(tasks), "gurney", tell_every=every)
    waits = {id(task): wait for task, wait in run.run().waits}
    return [(max(1.0, told), max(1.0, waits[id(task)])) for task, told in run.told if id(task) in waits]


class _Replay:
    def __init__(
        self,
        nodes: Sequence[Node],
        tasks: Sequence[Task],
        against: tuple[Typical, ...],
        order: Order,
        tell_every: int = 0,
    ) -> None:
        self._world = World(nodes, against)
        self._tasks = {f"job_{number:012d}": task for number, task in enumerate(tasks)}
        self._arrivals = sorted(
            (entry_of(number, task, task.at) for number, task in enumerate(tasks)), key=lambda entry: entry.key
        )
        self._queue = Queue()
        self._in_order: list[Entry] = []
        self._ends: list[tuple[float, str]] = []
        self._order = order
        self._tell_every = tell_every
        #: Tasks that had to wait, with the wait that was told.
        self.told: list[tuple[Task, float]] = []
        self._arrived: list[Entry] = []
        self._begun: dict[str, Task] = {}
        self._durations = Durations()
        self._shares = Shares()
        self._found = Replayed(decision_ms=self._world.decision_ms)

    def run(self) -> Replayed:
        """Go from one moment at which something happens to the next."""
        arrivals = iter(self._arrivals)
        coming = next(arrivals, None)
        now = area = 0.0
        last = max((task.at for task in self._tasks.values()), default=0.0)
        while coming or self._ends:
            due = self._tasks[coming.job_id].at if coming else self._ends[0][0]
            at = min(due, self._ends[0][0]) if self._ends else due
            area += self._world.used * max(0.0, min(at, last) - now)
            now = at
            while self._ends and self._ends[0][0] <= now:
                self._end(*heapq.heappop(self._ends))
            while coming and self._tasks[coming.job_id].at <= now:
                self._take(coming)
                coming = next(arrivals, None)
            self._place(now)
            if self._tell_every:
                self._tell(now)
            self._found.curve.append((now, self._world.allocation, len(self._queue)))
        self._found.never = len(self._queue)
        self._found.allocation = 100 * area / max(1e-9, last * self._world.units)
        return self._found

    def _take(self, entry: Entry) -> None:
        self._queue.add(entry)
        self._arrived.append(entry)
        if self._order == "fifo":
            self._in_order.append(entry)

    def _tell(self, now: float) -> None:
        """Estimate for some of those that have just come and wait when they will start."""
        waiting = [each for each in self._arrived if self._queue.get(each.job_id)]
        self._arrived = []
        for entry in waiting[:: self._tell_every]:
            _, wait_s = outlook(entry, self._queue.lanes, self._world.snapshot(moment(now)), self._rules(now))
            if wait_s is not None:
                self.told.append((self._tasks[entry.job_id], wait_s))

    def _end(self, at: float, run_id: str) -> None:
        task = self._begun.pop(run_id)
        share = self._world.share_of(run_id)
        self._world.end(run_id)
        self._durations.note(task.map, task.runs)
        self._shares.ended(task.project, share, moment(at - task.runs), moment(at))

    def _rules(self, now: float) -> Rules:
        at = moment(now)
        return Rules(at, self._shares.had(at), self._durations) if self._order == "gurney" else ByAge(at)

    def _place(self, now: float) -> None:
        if self._order != "fifo":
            again = len(self._queue) > 0
            while again:
                plan = self._world.decide(self._queue.shapes, self._rules(now))
                self._start(plan.decisions, now)
                again = self._order == "gurney" and self._world.book(plan.bookings)
            return
        place = 0
        for entry in self._in_order:
            decisions = self._world.decide(alone(entry), self._rules(now)).decisions
            if not decisions and self._world.running:
                break
            if decisions:
                self._start(decisions, now)
            place += 1
        del self._in_order[:place]

    def _start(self, decisions: Sequence[Decision], now: float) -> None:
        for decision in decisions:
            entry, run_id = decision.entry, decision.run_id
            task = self._tasks[entry.job_id]
            self._queue.drop(entry.job_id)
            self._begun[run_id] = task
            self._found.waits.append((task, max(0.0, now - task.at)))
            heapq.heappush(self._ends, (now + task.runs, run_id))
