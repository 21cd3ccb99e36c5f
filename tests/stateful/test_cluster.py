"""The whole scheduler as a machine: whatever happens around it, no promise is broken.

Nodes join, die and return, jobs arrive, end and are canceled, messages come late, twice, out of order or never, leaders
die or do not know that they are none. No node is over-committed, no job has two live runs, no attempt is started twice;
and when all is well again every job ends.
"""

from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gurney import clock, ids
from gurney.model.common import Ref
from gurney.model.job import JobEvent, JobState, MapRef, PlacementRequest
from gurney.model.run import Heartbeat, Lifecycle, Outcome, StartRun, StopRun
from gurney.subjects import HEARTBEAT
from services.scheduler import placer
from services.scheduler.plan import check
from services.scheduler.reconcile import KEPT_FOR
from tests.core.scheduler_builders import GIB, a_request
from tests.stateful.cluster_model import (
    BEAT_LIVES_S,
    Clock,
    Host,
    Jobs,
    Leader,
    Loop,
    Memory,
    Message,
    Nats,
)

NAMES = st.sampled_from(("n0", "n1", "n2"))
BITS = 16
ALL = (1 << BITS) - 1
PICK = st.integers(0, ALL)
#: As `PICK`, and mostly all.
MOST = st.one_of(st.just(ALL), st.just(ALL), PICK)
#: Seconds between two heartbeats, and between two looks at silent nodes.
STEP_S = 5.0
ROUNDS = 40


class Cluster(RuleBasedStateMachine):
    """`PICK` chooses one of what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self._real = (clock.now, clock.monotonic, placer.RETRY_S)
        clock.now, clock.monotonic, placer.RETRY_S = self.clock.now, lambda: self.clock.monotonic, 0.0
        self.loop = Loop()
        self.nats = Nats(self.clock)
        self.documents = Memory()
        self.jobs = Jobs(self.nats)
        self.hosts: dict[str, Host] = {}
        self.started: Counter[str] = Counter()
        #: Commands that an agent has heard.
        self.heard: list[Message] = []
        self.epoch = 0
        self.leader: Leader | None = None
        self.zombie: Leader | None = None
        #: What the zombie had read when it ceased to lead, and when that was.
        self.read: list[PlacementRequest] = []
        self.deposed_at = 0.0

    def teardown(self) -> None:
        try:
            self.all_is_well_again()
        finally:
            self.loop.close()
            clock.now, clock.monotonic, placer.RETRY_S = self._real

    # --- leaders ---

    @initialize(cpus=st.lists(st.sampled_from((1.0, 2.0, 4.0)), min_size=1, max_size=3), gpus=st.integers(0, 2))
    def begin(self, cpus: list[float], gpus: int) -> None:
        """A leader, and a few hosts that it has heard of."""
        self.another_leads(knows=True)
        for number, cpu in enumerate(cpus):
            self.a_host_joins(f"n{number}", cpu, gpus)
        self.it_goes_on(ALL)

    @rule(knows=st.booleans())
    def another_leads(self, *, knows: bool) -> None:
        """A standby takes over. The former leader is dead, or was frozen and does not know."""
        if knows:
            self.zombie = None
        elif self.leader:
            self.zombie = self.leader
            self.deposed_at = self.clock.monotonic
            self.read = [job.request for job in self.jobs.jobs.values() if not job.is_over]
        self.epoch += 1
        self.leader = Leader(self.nats, self.documents, self.epoch)
        self.loop.run(self.leader.begin())
        self.loop.run(self.leader.reconcile())

    @rule()
    def the_leader_dies(self) -> None:
        self.leader = None

    @precondition(lambda self: self.leader)
    @rule()
    def a_round_of_the_reconciler(self) -> None:
        assert self.leader
        self.loop.run(self.leader.reconcile())

    @precondition(lambda self: self.zombie)
    @rule(pick=PICK)
    def a_former_leader_goes_on(self, pick: int) -> None:
        """It still has questions and messages that it read before, and writes what it can.

        No write is under way for longer than placements that are over are kept.
        """
        assert self.zombie
        if self.read and self.clock.monotonic - self.deposed_at < KEPT_FOR.total_seconds():
            self.loop.run(self.zombie.desk.want(self.read[pick % len(self.read)]))

    def asked(self, pick: int) -> Leader | None:
        """Return who answers: mostly the leader, sometimes one who takes himself for it."""
        return self.zombie if self.zombie and pick % 4 == 0 else self.leader

    # --- hosts ---

    @rule(name=NAMES, cpu=st.sampled_from((1.0, 2.0, 4.0)), gpus=st.integers(0, 2))
    def a_host_joins(self, name: str, cpu: float, gpus: int) -> None:
        if name not in self.hosts:
            self.hosts[name] = Host(name, cpu, gpus, self.started)
            self.beats(self.hosts[name])

    @rule(name=NAMES)
    def an_agent_ends(self, name: str) -> None:
        if name in self.hosts:
            self.hosts[name].is_up = False

    @rule(name=NAMES, whole=st.booleans())
    def it_is_back(self, name: str, *, whole: bool) -> None:
        if name in self.hosts and not self.hosts[name].is_up:
            self.hosts[name].restarts(whole=whole)

    @rule(name=NAMES)
    def a_host_is_cut_off_or_reached_again(self, name: str) -> None:
        if name in self.hosts:
            self.hosts[name].is_cut_off = not self.hosts[name].is_cut_off

    @rule(name=NAMES)
    def a_host_beats(self, name: str) -> None:
        if name in self.hosts and self.hosts[name].is_there:
            self.beats(self.hosts[name])

    def beats(self, host: Host) -> None:
        beat = host.beat(self.clock.monotonic)
        self.nats.bucket[host.name] = (self.clock.monotonic, beat)
        self.nats.send("leader", beat)

    @precondition(lambda self: self.leader)
    @rule(name=NAMES, drained=st.booleans())
    def a_node_is_drained_or_resumed(self, name: str, *, drained: bool) -> None:
        assert self.leader
        self.loop.run((self.leader.nodes.drain if drained else self.leader.nodes.resume)(Ref(ref=name)))

    # --- jobs ---

    @rule(cpu=st.sampled_from((0.5, 1.0, 2.0)), gpus=st.sampled_from((0, 0, 0, 1, 2)), pick=MOST)
    def a_job_arrives(self, cpu: float, gpus: int, pick: int) -> None:
        request = a_request(len(self.jobs.jobs) + 1, cpu=cpu, gpus=gpus or None, memory=GIB)
        now = self.clock.now()
        self.jobs.add(request.but(created_at=now, requested_at=now))
        self.it_goes_on(pick)

    @precondition(lambda self: self.jobs.jobs)
    @rule(pick=PICK)
    def a_job_is_canceled(self, pick: int) -> None:
        """The message of it may get lost: the reconciler asks."""
        job = list(self.jobs.jobs.values())[pick % len(self.jobs.jobs)]
        if job.is_over:
            return
        job.canceling = True
        if (who := self.asked(pick)) and pick % 3:
            self.loop.run(who.runs.cancel(job.request.job_id, job.request.attempt))

    @precondition(lambda self: self.leader)
    @rule()
    def the_job_service_asks_what_became_of_its_jobs(self) -> None:
        assert self.leader
        (told,) = self.loop.run(self.leader.placements(self.jobs.running))
        for each in told:
            self.jobs.fold(each)

    # --- messages ---

    @precondition(lambda self: self.nats.messages)
    @rule(pick=PICK, twice=st.booleans())
    def a_message_arrives(self, pick: int, *, twice: bool) -> None:
        message = self.nats.messages[pick % len(self.nats.messages)]
        if self.deliver(message) and not twice:
            self.nats.messages.remove(message)

    @precondition(lambda self: self.nats.messages)
    @rule(pick=PICK)
    def a_message_is_lost(self, pick: int) -> None:
        self.nats.messages.pop(pick % len(self.nats.messages))

    @precondition(lambda self: self.heard)
    @rule(pick=PICK)
    def an_old_command_comes_again(self, pick: int) -> None:
        """Long after it was answered."""
        message = self.heard[pick % len(self.heard)]
        if self.deliver(message):
            for number in range(len(self.hosts[message.to].journal)):
                self.an_agent_asks_whether_it_may_start(4 * number + 1, None)

    @rule()
    def jetstream_is_wiped(self) -> None:
        self.nats.wipe()

    def deliver(self, message: Message) -> bool:
        """Tell whether it got there, or never will."""
        match message.what:
            case Lifecycle():
                self.jobs.fold(message.what)
            case StartRun() | StopRun():
                if not self.hosts[message.to].is_there:
                    return False
                self.hosts[message.to].hears(message.what)
                self.heard.append(message)
            case PlacementRequest():
                if self.leader is None:
                    return False
                self.loop.run(self.leader.desk.requested("", event(message.what)))
            case Heartbeat():
                if self.leader and self.clock.monotonic - message.sent < BEAT_LIVES_S:
                    subject = HEARTBEAT.of(node_id=message.what.node)
                    self.loop.run(self.leader.beats.on_beat(subject, message.what.encode()))
        return True

    @rule(pick=MOST)
    def it_goes_on(self, pick: int) -> None:
        """Agents beat, some of what is on its way arrives, and what follows, and they ask whether they may start."""
        for host in self.hosts.values():
            if host.is_there:
                self.beats(host)
        for _ in range(3):
            self.some_arrive(pick)

    def some_arrive(self, pick: int) -> None:
        for number, message in enumerate(list(self.nats.messages)):
            if pick >> number % BITS & 1 and self.deliver(message):
                self.nats.messages.remove(message)
        for number, host in enumerate(self.hosts.values()):
            for _ in range(pick >> number & 3):
                if host.is_there:
                    self.an_agent_asks_whether_it_may_start(2 * number + 1, None)

    # --- runs ---

    @precondition(lambda self: self.hosts)
    @rule(pick=PICK, lost=st.sampled_from((None, None, "question", "answer")))
    def an_agent_asks_whether_it_may_start(self, pick: int, lost: str | None) -> None:
        found = [
            (host, run)
            for host in self.hosts.values()
            if host.is_there
            for run in host.journal.values()
            if not run.lives and run.outcome is None
        ]
        if not found or lost == "question" or (who := self.asked(pick)) is None:
            return
        host, run = found[pick % len(found)]
        (answer,) = self.loop.run(who.confirm(run.start, host.name))
        if isinstance(answer, bool) and lost is None:
            host.is_answered(run.start.run_id, start=answer, asked=self.clock.monotonic)

    @rule(pick=MOST, ending=st.sampled_from(("succeeded", "succeeded", "failed", "lost")))
    def a_run_ends(self, pick: int, ending: Any) -> None:
        found = [(host, run) for host in self.hosts.values() for run in host.journal.values() if run.lives]
        if found:
            host, run = found[pick % len(found)]
            host.ends(run, Outcome(ending=ending))
            if host.is_there:
                self.an_agent_tells_of_an_end(pick, None)
            self.it_goes_on(pick)

    @rule(pick=PICK, lost=st.sampled_from((None, None, "question", "answer")))
    def an_agent_tells_of_an_end(self, pick: int, lost: str | None) -> None:
        found = [
            (host, run)
            for host in self.hosts.values()
            if host.is_there
            for run in host.journal.values()
            if run.outcome is not None
        ]
        if not found or lost == "question" or (who := self.asked(pick)) is None:
            return
        host, run = found[pick % len(found)]
        assert run.outcome
        (answer,) = self.loop.run(who.ended(run.start.run_id, host.name, run.outcome))
        if not isinstance(answer, Exception) and lost is None:
            host.journal.pop(run.start.run_id)

    # --- time ---

    @rule(seconds=st.sampled_from((1, 10, 40, 120, 700)), beating=st.booleans(), pick=MOST)
    def time_goes_on(self, seconds: int, pick: int, *, beating: bool) -> None:
        self.time_passes(seconds, beating=beating)
        self.it_goes_on(pick)

    def time_passes(self, seconds: int, *, beating: bool) -> None:
        """Leases lapse, and the leader looks after silent nodes; `beating`: those that can are none of them."""
        until = self.clock.monotonic + seconds
        while self.clock.monotonic < until:
            self.clock.monotonic = min(until, self.clock.monotonic + STEP_S)
            for host in self.hosts.values():
                if beating and host.is_there:
                    self.beats(host)
                    self.deliver(self.nats.messages.pop())
                host.watch(self.clock.monotonic)
            if self.leader:
                self.loop.run(self.leader.watch.look())

    # --- what is always true ---

    @invariant()
    def no_node_is_over_committed(self) -> None:
        for host in self.hosts.values():
            live = [run.start for run in host.journal.values() if run.lives]
            assert sum(start.request.resources.cpu or 0 for start in live) <= host.capacity.cpu
            gpus = [gpu for start in live for gpu in start.gpus]
            assert len(set(gpus)) == len(gpus)
        if self.leader and self.leader.tenure.leads:
            assert check(self.leader.cluster.snapshot(self.clock.now())) == []

    @invariant()
    def no_job_has_two_live_runs(self) -> None:
        live = Counter(run.start.job_id for host in self.hosts.values() for run in host.journal.values() if run.lives)
        assert [job for job, count in live.items() if count > 1] == []

    @invariant()
    def no_attempt_was_started_twice(self) -> None:
        assert [run for run, count in self.started.items() if count > 1] == []

    # --- in the end ---

    def all_is_well_again(self) -> None:
        """Everything is up, reached, resumed, with room for every job: then no job is lost, and none is stuck."""
        if not self.jobs.jobs:
            return
        self.zombie = None
        self.hosts.setdefault("large", Host("large", 4.0, 2, self.started))
        for host in self.hosts.values():
            host.is_cut_off = False
            if not host.is_up:
                host.restarts(whole=False)
        self.another_leads(knows=True)
        for _ in range(ROUNDS):
            self.a_round()
            self.no_node_is_over_committed()
            self.no_job_has_two_live_runs()
            self.no_attempt_was_started_twice()
            if all(job.is_over for job in self.jobs.jobs.values()):
                return
        left = {id_: (job.state, job.request.attempt) for id_, job in self.jobs.jobs.items() if not job.is_over}
        raise AssertionError(f"stuck: {left}")

    def a_round(self) -> None:
        """Let everybody do his part."""
        self.time_passes(20, beating=True)
        assert self.leader
        for name in list(self.leader.cluster.nodes):
            self.a_node_is_drained_or_resumed(name, drained=False)
        self.a_round_of_the_reconciler()
        self.the_job_service_asks_what_became_of_its_jobs()
        for message in list(self.nats.messages):
            self.deliver(message)
        self.nats.messages.clear()
        for host in self.hosts.values():
            for _ in range(len(host.journal)):
                self.an_agent_asks_whether_it_may_start(1, None)
            for run in host.journal.values():
                if run.lives:
                    host.ends(run, Outcome(ending="succeeded"))
            for _ in range(len(host.journal)):
                self.an_agent_tells_of_an_end(1, None)


def event(request: PlacementRequest) -> bytes:
    """Return the body of `job.requested`."""
    return JobEvent(
        id=request.job_id,
        event="requested",
        event_id=ids.job_event_id(request.job_id, request.attempt, "requested"),
        at=request.requested_at,
        project="default",
        created_by="tester",
        name=None,
        labels={},
        map=MapRef(id="map_0", urn=request.request.urn, digest="sha256:0"),
        payload="pay_0",
        results=None,
        state=JobState.REQUESTED,
        attempt=request.attempt,
        created_at=request.created_at,
        placement=request,
    ).encode()


TestCluster = pytest.mark.timeout(1800)(Cluster.TestCase)
#: Five times what others have: 5,000 examples in the profile `long`.
TestCluster.settings = settings(stateful_step_count=60, max_examples=5 * settings().max_examples)
