"""The scheduler's core as a machine: jobs come, run, end and are canceled, nodes come and shrink, writes get lost."""

from datetime import datetime, timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, precondition, rule

from gurney.ids import run_id
from gurney.model.job import Admission, PlacementRequest
from gurney.model.resources import Gpu
from gurney.model.run import Admit, Outcome, Placement
from services.scheduler import feasible, lifecycle, machine
from services.scheduler.cluster import Cluster
from services.scheduler.order import entry_of
from services.scheduler.plan import check
from services.scheduler.policy import evaluate
from tests.core.scheduler_builders import ASKS, GIB, NOW, SILENT_AFTER, a_gpu, a_node, a_request

ENDINGS = ("succeeded", "failed", "canceled", "lost")


class Scheduling(RuleBasedStateMachine):
    """Memory and documents apart, as in the service: a decision is in memory first, then written, or undone."""

    runs = Bundle("runs")

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster(SILENT_AFTER)
        self.cluster.epoch = 1
        self.documents: dict[str, Placement] = {}
        self.requests: dict[str, PlacementRequest] = {}
        self.starts: list[str] = []
        self.now: datetime = NOW
        self.jobs = 0

    # --- what happens ---

    @rule(number=st.integers(0, 3), cpu=st.sampled_from((0.5, 2.0, 4.0)), gpus=st.integers(0, 2))
    def a_node_reports(self, number: int, cpu: float, gpus: int) -> None:
        """A node joins, or is heard of again. It keeps what its runs hold: a host does not shrink under them."""
        name = f"n{number}"
        known = self.cluster.nodes.get(name)
        fresh = a_node(name, gpus=_gpus(number, gpus), cpu=cpu, memory=4 * GIB)
        self.cluster.nodes[name] = (known or fresh).but(last_seen_at=self.now)

    @rule(seconds=st.sampled_from((1, 10, 20, 4000)))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(target=runs, ask=ASKS)
    def a_job_is_requested(self, ask: dict[str, Any]) -> Any:
        self.jobs += 1
        return self.request(a_request(self.jobs, **ask))

    def request(self, request: PlacementRequest) -> str:
        run = run_id(request.job_id, request.attempt)
        self.requests[run] = request.but(created_at=self.now, requested_at=self.now)
        self.cluster.queue.add(entry_of(self.requests[run], self.now))
        return run

    @rule(target=runs, ask=ASKS)
    def a_job_is_admitted_at_once_or_refused(self, ask: dict[str, Any]) -> Any:
        """It gets room only where no job before it in the queue could use it."""
        self.jobs += 1
        request = a_request(self.jobs, **ask).but(created_at=self.now, requested_at=self.now)
        entry = entry_of(request, self.now)
        plan = evaluate(
            self.cluster.snapshot(self.now), self.cluster.queue.with_one_more(entry), self.cluster.rules(self.now)
        )
        decision = next((each for each in plan.decisions if each.entry is entry), None)
        if decision is None:
            assert plan.reasons(entry)
            return multiple()
        question = Admit(
            job_id=request.job_id,
            project="default",
            priority=request.priority,
            admission=Admission.REJECT,
            request=request.request,
        )
        self.write(None, machine.reserved(question, decision, 1))
        self.requests[decision.run_id] = request
        return decision.run_id

    @rule(run=runs)
    def a_request_is_repeated(self, run: str) -> None:
        """A message may come twice, at any time."""
        held = self.cluster.placements.get(run)
        if held is None:
            self.cluster.queue.add(entry_of(self.requests[run], self.now))
        elif after := machine.taken_up(held, self.requests[run], self.now):
            self.write(held, after)
            self.starts.append(run)

    @rule(lost=st.sampled_from((None, 0, 1)))
    def the_queue_is_evaluated(self, lost: int | None) -> None:
        """All that fits is placed; the write of one of them may fail, so that its job waits again."""
        plan = evaluate(self.cluster.snapshot(self.now), self.cluster.queue.shapes, self.cluster.rules(self.now))
        placements = [machine.placed(each, 1) for each in plan.decisions]
        for decision, placement in zip(plan.decisions, placements, strict=True):
            self.cluster.queue.drop(decision.entry.job_id)
            self.cluster.add(placement)
        assert check(self.cluster.snapshot(self.now)) == []
        self.nothing_stays_blocked()
        for number, placement in enumerate(placements):
            if number == lost or placement.id in self.documents:
                self.undo(placement)
            else:
                self.documents[placement.id] = placement
                self.starts.append(placement.id)

    def undo(self, placement: Placement) -> None:
        self.cluster.forget(placement.id)
        if placement.id not in self.documents:
            self.cluster.queue.add(entry_of(self.requests[placement.id], self.now))

    def nothing_stays_blocked(self) -> None:
        """With room nothing waits, and what waits has counted reasons."""
        snapshot = self.cluster.snapshot(self.now)
        for lane, entries in self.cluster.queue.lanes.items():
            if all(entry.job_id in snapshot.live for entry in entries):
                continue
            assert not feasible.passing(snapshot.nodes.values(), lane.shape, feasible.NOW)
            reasons = feasible.reasons(snapshot.nodes.values(), lane.shape, feasible.NOW)
            assert sum(reason.count for reason in reasons) == len(snapshot.nodes)

    @rule(run=runs, node=st.sampled_from(("n0", "n1", "n2", "n3")))
    def an_agent_confirms(self, run: str, node: str) -> None:
        if before := self.documents.get(run):
            self.follow(before, machine.confirmed(before, node, 1, 1, self.now))

    @rule(run=runs)
    def it_starts(self, run: str) -> None:
        if before := self.documents.get(run):
            self.follow(before, machine.started(before, self.now))

    @rule(run=runs, ending=st.sampled_from(ENDINGS))
    def it_ends(self, run: str, ending: Any) -> None:
        before = self.documents.get(run)
        if before and before.node:
            self.follow(before, machine.ended(before, before.node, Outcome(ending=ending), self.now))

    @rule(target=runs, run=runs)
    def a_lost_attempt_is_requested_again(self, run: str) -> Any:
        before = self.documents.get(run)
        if before is None or before.outcome is None or before.outcome.ending != "lost":
            return multiple()
        request = self.requests[run]
        return self.request(request.but(attempt=request.attempt + 1))

    @rule(run=runs)
    def it_is_canceled(self, run: str) -> None:
        request = self.requests[run]
        self.cluster.queue.drop(request.job_id, request.attempt)
        if before := self.documents.get(run):
            self.follow(before, machine.canceled(before, machine.cancel_outcome(), self.now))
        else:
            never = machine.never_placed(request.job_id, request.attempt, machine.cancel_outcome(), 1, self.now)
            self.documents[run] = never

    @precondition(lambda self: self.documents)
    @rule()
    def another_leads(self) -> None:
        """A new leader knows what is written, and takes it over."""
        fresh = Cluster(SILENT_AFTER)
        fresh.epoch, fresh.nodes, fresh.queue = 1, self.cluster.nodes, self.cluster.queue
        for placement in self.documents.values():
            if placement.live:
                fresh.add(placement)
        self.cluster = fresh

    def follow(self, before: Placement, after: Placement | None) -> None:
        if after:
            self.write(before, after)

    def write(self, before: Placement | None, after: Placement) -> None:
        assert after.revision == (before.revision + 1 if before else 1)
        self.documents[after.id] = after
        if before is None:
            self.cluster.add(after)
        else:
            self.cluster.put(after)

    # --- what is always true ---

    @invariant()
    def no_promise_is_broken(self) -> None:
        assert check(self.cluster.snapshot(self.now)) == []

    @invariant()
    def memory_is_what_is_written(self) -> None:
        assert dict(self.cluster.placements) == {run: each for run, each in self.documents.items() if each.live}

    @invariant()
    def each_attempt_was_started_once_at_most(self) -> None:
        assert len(set(self.starts)) == len(self.starts)

    @invariant()
    def a_placement_has_one_end(self) -> None:
        for placement in self.documents.values():
            ends = [each.event for each in lifecycle.implied(placement) if each.event in ENDINGS]
            assert len(ends) == (0 if placement.live else 1)


def _gpus(node: int, count: int) -> list[Gpu]:
    return [a_gpu(f"{node}-{each}") for each in range(count)]


TestScheduling = Scheduling.TestCase
