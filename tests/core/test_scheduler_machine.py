"""The states of a placement, and what a placement says of its job."""

from collections.abc import Callable
from datetime import timedelta
from itertools import product

import pytest

from gurney.model.base import Reason
from gurney.model.job import Admission, Priority
from gurney.model.run import LIVE_PLACEMENTS, Admit, Outcome, Placement, PlacementState
from services.scheduler import lifecycle, machine
from services.scheduler.order import entry_of
from services.scheduler.plan import Decision
from tests.core.scheduler_builders import NOW, a_placement, a_request, a_run, job_id

LATER = NOW + timedelta(seconds=5)
OK = Outcome(ending="succeeded", exit_code=0)
GONE = machine.cancel_outcome()


def a_reservation() -> Placement:
    question = Admit(
        job_id=job_id(1),
        project="default",
        priority=Priority.NORMAL,
        admission=Admission.REJECT,
        request=a_run(),
    )
    return machine.reserved(question, Decision(entry_of(a_request(), NOW), "n1", NOW), 1)


def need(placement: Placement | None) -> Placement:
    assert placement is not None
    return placement


def confirmed() -> Placement:
    return need(machine.confirmed(a_placement(), "n1", 1, 1, NOW))


SAMPLES: dict[PlacementState, Callable[[], Placement]] = {
    PlacementState.RESERVED: a_reservation,
    PlacementState.PLACED: a_placement,
    PlacementState.CONFIRMED: confirmed,
    PlacementState.ENDED: lambda: need(machine.ended(confirmed(), "n1", OK, NOW)),
    PlacementState.CANCELED: lambda: need(machine.canceled(a_placement(), GONE, NOW)),
}

EVENTS: dict[str, Callable[[Placement], Placement | None]] = {
    "requested": lambda placement: machine.taken_up(placement, a_request(), LATER),
    "confirm": lambda placement: machine.confirmed(placement, "n1", 1, 1, LATER),
    "running": lambda placement: machine.started(placement, LATER),
    "ended": lambda placement: machine.ended(placement, "n1", OK, LATER),
    "cancel": lambda placement: machine.canceled(placement, GONE, LATER),
    "take over": lambda placement: machine.led(placement, 2),
}

#: What each event makes of each state; what is not here changes nothing.
EXPECTED = {
    ("reserved", "requested"): "placed",
    ("placed", "confirm"): "confirmed",
    ("confirmed", "running"): "confirmed",
    ("placed", "ended"): "ended",
    ("confirmed", "ended"): "ended",
    ("reserved", "cancel"): "canceled",
    ("placed", "cancel"): "canceled",
    ("confirmed", "cancel"): "confirmed",
    **{(state.value, "take over"): state.value for state in LIVE_PLACEMENTS},
}


@pytest.mark.parametrize(("state", "event"), list(product(PlacementState, EVENTS)))
def test_every_event_meets_every_state(state: PlacementState, event: str) -> None:
    """An event moves a placement as the table says, or changes nothing; ends are final."""
    before = SAMPLES[state]()
    assert before.state is state
    after = EVENTS[event](before)
    assert (after.state.value if after else None) == EXPECTED.get((state.value, event))
    if after:
        assert after.revision == before.revision + 1
        assert after.state is state or after.state in machine.TRANSITIONS[state]


@pytest.mark.parametrize("state", PlacementState)
def test_only_a_live_placement_on_this_node_at_this_epoch_may_start(state: PlacementState) -> None:
    """A node may start what was placed there, as often as it asks, and nothing else."""
    placement = SAMPLES[state]()
    may = state in {PlacementState.PLACED, PlacementState.CONFIRMED}
    assert (machine.refusal(placement, "n1", 1, 1) is None) is may
    assert machine.refusal(placement, "n2", 1, 1)
    assert machine.refusal(placement, "n1", 2, 1)
    assert machine.refusal(placement, "n1", 1, 2)
    assert machine.confirmed(placement, "n2", 1, 1, NOW) is None


def test_a_start_of_an_older_leadership_is_good_once_the_placement_was_taken_over() -> None:
    """The node, the run and its GPUs are the same, so the node need not wait for the start to come again."""
    placement = need(machine.led(a_placement(), 2))
    assert machine.refusal(placement, "n1", 1, 2) is None
    assert machine.led(placement, 2) is None


def test_another_node_cannot_end_a_run() -> None:
    """A report of a node on which the run is not is no end."""
    assert machine.ended(confirmed(), "n2", OK, LATER) is None


def test_stamps_never_go_back() -> None:
    """Clocks may differ: a time is never before the one that precedes it."""
    early = NOW - timedelta(hours=1)
    placement = need(machine.confirmed(a_placement(), "n1", 1, 1, early))
    assert placement.confirmed_at == placement.placed_at == NOW
    placement = need(machine.started(placement, early))
    assert placement.started_at == NOW
    assert need(machine.ended(placement, "n1", OK, early)).ended_at == NOW


def test_a_start_that_nobody_recorded_comes_with_the_end() -> None:
    """The job hears of the start before the end, and each has a revision of its own."""
    before = confirmed()
    after = need(machine.ended(before, "n1", OK.but(started_at=NOW + timedelta(seconds=1)), LATER))
    assert after.started_at == NOW + timedelta(seconds=1)
    assert [(each.event, each.revision) for each in lifecycle.news(before, after)] == [("started", 2), ("succeeded", 3)]
    told = need(machine.ended(before, "n1", OK, LATER, NOW + timedelta(seconds=2)))
    assert told.started_at == NOW + timedelta(seconds=2)


def test_what_never_ran_has_no_start() -> None:
    """An attempt whose image was not to be had ends without having started."""
    lost = Outcome(ending="lost", reason=Reason.of("image_unavailable"))
    after = need(machine.ended(confirmed(), "n1", lost, LATER))
    assert [each.event for each in lifecycle.implied(after)] == ["scheduled", "lost"]


def test_a_placement_says_the_same_whenever_it_is_asked() -> None:
    """Messages made up later are those that were sent, with the same ids, revisions and content."""
    placement = need(machine.taken_up(a_reservation(), a_request(), NOW))
    sent = lifecycle.news(a_reservation(), placement)
    for decide in (EVENTS["confirm"], EVENTS["running"], EVENTS["cancel"], EVENTS["ended"]):
        after = need(decide(placement))
        sent += lifecycle.news(placement, after)
        placement = after
    assert lifecycle.implied(placement) == sent
    assert [(each.event, each.revision) for each in sent] == [("scheduled", 2), ("started", 4), ("succeeded", 6)]
    assert len({each.event_id for each in sent}) == 3


def test_a_reservation_says_nothing() -> None:
    """The job does not exist yet."""
    assert lifecycle.implied(a_reservation()) == []


@pytest.mark.parametrize(("ending", "state"), [("canceled", "canceled"), ("failed", "ended")])
def test_an_attempt_that_was_never_placed_says_how_it_ended(ending: str, state: str) -> None:
    """Its only message is its end."""
    outcome = Outcome(ending=ending, reason=Reason.of("infeasible"))
    placement = machine.never_placed(job_id(1), 2, outcome, 1, NOW)
    (message,) = lifecycle.implied(placement)
    assert (placement.state, message.event, message.attempt, message.outcome) == (state, ending, 2, outcome)


def test_a_page_of_messages_is_cut_between_placements() -> None:
    """Messages of one placement stay together, and the first always comes."""
    large = OK.but(metadata={"text": "x" * 300_000})
    ended = [need(machine.ended(need(EVENTS["confirm"](a_placement(number))), "n1", large, NOW)) for number in (1, 2)]
    page = lifecycle.page(ended)
    assert [(each.job_id, each.event) for each in page] == [(job_id(1), "scheduled"), (job_id(1), "succeeded")]
    assert len(lifecycle.page([each.but(outcome=OK) for each in ended])) == 4


def test_states_without_a_way_out_are_the_ends() -> None:
    """The table's last states are the ones that are not live."""
    final = {state for state, following in machine.TRANSITIONS.items() if not following}
    assert final == set(PlacementState) - LIVE_PLACEMENTS


def test_a_placement_says_what_keeps_its_run_within_its_gpu_memory() -> None:
    """A share of a GPU is watched; whole GPUs have a wall of their own, and where there is no GPU there is no limit."""
    for placement, limit in (
        (a_placement(), None),
        (a_placement(gpus=("GPU-1",)), "walled"),
        (a_placement(gpus=("GPU-1",), share=1024), "watched"),
    ):
        (message,) = lifecycle.implied(placement)
        assert message.gpu_limit == limit
