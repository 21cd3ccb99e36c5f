"""The scheduler's lease: who may take it and for how long its holder acts; when nodes and runs count as gone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gurney.model.resources import Amount, Gpu
from gurney.model.run import Heartbeat, Leadership, Node, NodeState, Placement
from services.agent.leases import Leases
from services.agent.policy import may_claim
from services.scheduler import census, lease, machine
from services.scheduler.lease import Sight
from services.scheduler.presence import MARGIN_S, Presence
from tests.core.scheduler_builders import DIR, GIB, NOW, a_node, a_placement

TERM = 10.0
RATES = st.floats(0.95, 1.05)
DELAYS = st.floats(0, 100)


def held(**more: object) -> Leadership:
    return lease.taken(None, "one", "").but(**more)


@given(rates=st.tuples(RATES, RATES), answer=DELAYS, commit=DELAYS, look=DELAYS)
def test_a_leader_stops_before_a_standby_may_take_over(
    rates: tuple[float, float], answer: float, commit: float, look: float
) -> None:
    """However long messages take, and though clocks drift by a twentieth: nobody acts under a lease that is free."""
    leader, standby = rates
    asked = 0.0
    written = asked + commit
    seen = written + answer
    stops = lease.acts_until(asked * leader, TERM) / leader
    sight = lease.sighted(Sight(6, -1e6), held(revision=7), seen * standby)
    taken = (sight.since + TERM + look) / standby
    assert lease.is_free(held(revision=7), sight, taken * standby + 1e-6, TERM)
    assert stops < taken
    assert not lease.is_free(held(revision=7), sight, sight.since + TERM - 0.001, TERM)


def test_a_lease_that_is_renewed_is_not_free() -> None:
    """A standby counts from when it first saw the revision that is there."""
    sight = lease.sighted(None, held(), 0.0)
    assert lease.sighted(sight, held(), 9.0) == sight
    fresh = lease.sighted(sight, held(revision=2), 9.0)
    assert fresh.since == 9.0
    assert not lease.is_free(held(revision=2), fresh, 18.9, TERM)


def test_a_lease_that_nobody_has_is_free_at_once() -> None:
    """It was never taken, or it was given up."""
    nothing = lease.sighted(None, None, 0.0)
    assert lease.is_free(None, nothing, 0.0, TERM)
    assert lease.is_free(held(released=True), nothing, 0.0, TERM)


def test_each_take_over_raises_the_epoch() -> None:
    """Also above what agents have heard of, when documents were put back."""
    first = held()
    again = lease.taken(first, "two", "p")
    assert (first.epoch, again.epoch, again.revision, again.holder) == (1, 2, 2, "two")
    assert lease.taken(None, "one", "", heard=9).epoch == 10
    assert lease.taken(first, "two", "", heard=9).epoch == 10
    assert not lease.taken(held(released=True), "two", "").released


@pytest.mark.parametrize("found", [held(epoch=2), held(holder="two"), held(released=True)])
def test_only_the_holder_renews_and_gives_up(found: Leadership) -> None:
    """What was taken by another, or given up, is not the holder's any more."""
    mine = held()
    assert lease.renewed(mine.but(revision=5), mine) == mine.but(revision=6)
    assert lease.given_up(mine.but(revision=5), mine) == mine.but(revision=6, released=True)
    assert lease.renewed(found, mine) is None
    assert lease.given_up(found, mine) is None


# --- nodes and runs ---


def a_confirmed(number: int = 1) -> Placement:
    confirmed = machine.confirmed(a_placement(number), "n1", 1, 1, NOW)
    assert confirmed is not None
    return confirmed


def leased(state: NodeState = NodeState.LOST) -> Node:
    return a_node().but(lease=60.0, home="a", state=state)


def test_silence_is_counted_anew_after_each_interruption() -> None:
    """A node is lost only when the leader would have heard of it all the time."""
    presence = Presence(30.0)
    presence.restart(100.0)
    assert not presence.is_silent("n1", 129.9)
    assert presence.is_silent("n1", 130.0)
    presence.heard("n1", (), 125.0)
    assert not presence.is_silent("n1", 154.9)
    presence.restart(140.0)
    assert not presence.is_silent("n1", 169.9)
    assert presence.is_silent("n1", 170.0)


def test_a_run_is_gone_when_its_lease_and_the_margin_are_over() -> None:
    """Counted from the last heartbeat that named it, its confirmation, or an interruption, whichever was last."""
    presence, run = Presence(30.0), a_confirmed()
    presence.confirmed(run.id, 100.0)
    until = 100.0 + 60.0 + MARGIN_S
    assert not presence.is_gone(run, leased(), until - 0.1)
    assert presence.is_gone(run, leased(), until)
    presence.heard("n1", (run.id,), 110.0)
    assert not presence.is_gone(run, leased(), until + 9.9)
    assert presence.is_gone(run, leased(), until + 10)
    presence.heard("n1", (), 500.0)
    assert presence.is_gone(run, leased(), until + 10)
    presence.restart(120.0)
    assert not presence.is_gone(run, leased(), until + 19.9)
    presence.keep(())
    assert presence.is_gone(run, leased(), until + 20)


def test_what_was_never_confirmed_is_gone_with_its_node() -> None:
    """It cannot have started; while the node may come back at any moment it waits."""
    presence, placed = Presence(30.0), a_placement()
    assert presence.is_gone(placed, leased(), 0.0)
    assert not presence.is_gone(placed, leased(NodeState.READY), 1e9)
    assert not presence.is_gone(placed.but(state="reserved"), leased(), 1e9)


def test_runs_without_a_lease_wait_for_their_agent() -> None:
    """With one host there is nowhere else to go."""
    presence = Presence(30.0)
    for run in (a_placement(), a_confirmed()):
        assert not presence.is_gone(run, leased().but(lease=None), 1e9)


def a_beat(**more: object) -> Heartbeat:
    fields = {"incarnation": "i", "home": "a", "capacity": Amount(cpu=4, memory=GIB), "kinds": (DIR,)} | more
    return Heartbeat(node="n1", at=NOW, **fields)


def test_a_lost_node_is_ready_again_when_it_is_heard_of() -> None:
    """Losing it twice changes nothing."""
    ready = census.node_of(a_beat(), NOW)
    lost = census.lost(ready)
    assert lost is not None
    assert (lost.state, lost.revision) == (NodeState.LOST, 2)
    assert census.lost(lost) is None
    assert census.node_of(a_beat(), NOW, lost).state is NodeState.READY


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_drained_node_stays_drained_until_it_is_resumed(*, is_lost: bool) -> None:
    """Whether it is there or lost; asking twice changes nothing."""
    node = census.node_of(a_beat(), NOW)
    if is_lost:
        node = census.lost(node) or node
    drained = census.drained(node)
    assert drained is not None
    assert (drained.state, drained.drained) == (NodeState.LOST if is_lost else NodeState.DRAINING, True)
    assert census.drained(drained) is None
    assert census.node_of(a_beat(), NOW, drained).state is NodeState.DRAINING
    resumed = census.resumed(drained)
    assert resumed is not None
    assert (resumed.state, resumed.drained) == (node.state, False)
    assert census.resumed(resumed) is None
    assert census.node_of(a_beat(), NOW, resumed).state is NodeState.READY


def test_what_gpus_have_in_use_is_no_news() -> None:
    """What changes with each heartbeat does not make a document be written; a GPU that fails does."""
    gpu = Gpu(uuid="GPU-1", model="A", memory=GIB, used=1, others=1)
    saved = census.node_of(a_beat(gpus=(gpu,)), NOW)
    assert not census.is_worth_saving(saved, census.node_of(a_beat(gpus=(gpu.but(used=7, others=5),)), NOW, saved))
    assert census.is_worth_saving(saved, census.node_of(a_beat(gpus=(gpu.but(health="lost"),)), NOW, saved))


def test_another_host_is_known_by_its_home() -> None:
    """Where runs have leases; without them there is one host, whatever it calls home."""
    known = census.node_of(a_beat(lease=60.0), NOW)
    assert census.is_another_host(known, a_beat(home="b"))
    assert not census.is_another_host(known, a_beat(incarnation="j"))
    assert not census.is_another_host(known.but(lease=None), a_beat(home="b"))


@pytest.mark.parametrize(
    ("found", "has_beaten", "may"),
    [
        (None, True, True),
        (a_beat(incarnation="me", home="other"), True, True),
        (a_beat(home="mine"), False, True),
        (a_beat(home="mine"), True, False),
        (a_beat(home="other"), False, False),
    ],
)
def test_an_agent_claims_its_own_key_only(found: Heartbeat | None, has_beaten: bool, may: bool) -> None:  # noqa: FBT001
    """Its own heartbeats and those of its former life; once it has beaten, another life of its folder is a twin."""
    assert may_claim(found, "mine", "me", has_beaten=has_beaten) is may


def test_a_lease_counts_from_when_it_was_asked_for() -> None:
    """The confirmation begins it, an acknowledged heartbeat renews it, and nothing takes time back."""
    leases = Leases(60.0)
    leases.confirmed("r", 100.0)
    assert leases.until("r") == 160.0
    assert leases.renewed(("r",), 110.0, 115.0) == 170.0
    assert leases.until("r") == 170.0
    leases.renewed(("r",), 105.0, 116.0)
    assert (leases.until("r"), leases.has_lapsed("r", 169.9), leases.has_lapsed("r", 170.0)) == (170.0, False, True)


def test_a_lapsed_lease_is_not_renewed() -> None:
    """An acknowledgement that comes too late saves nothing."""
    leases = Leases(60.0)
    leases.confirmed("r", 100.0)
    leases.renewed(("r",), 150.0, 160.0)
    assert leases.until("r") == 160.0
    leases.forget("r")
    assert not leases.has_lapsed("r", 1e9)


def test_without_leases_nothing_lapses() -> None:
    """The runs of a host that is alone wait for it."""
    leases = Leases(None)
    leases.confirmed("r", 100.0)
    assert (leases.renewed(("r",), 110.0, 115.0), leases.until("r"), leases.has_lapsed("r", 1e9)) == (None, None, False)
