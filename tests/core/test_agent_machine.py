"""The steps of a run on its node."""

from itertools import product

import pytest

from services.agent.machine import (
    BEFORE_START,
    BREAKABLE,
    HOLDS_ROOM,
    RESUME,
    TRANSITIONS,
    Event,
    Kept,
    Seen,
    Step,
    after,
    tables,
)


@pytest.mark.parametrize(("step", "event"), list(product(Step, Event)))
def test_only_what_the_table_says_happens(step: Step, event: Event) -> None:
    """Every pair of step and event is in the table, or raises."""
    if (step, event) in TRANSITIONS:
        assert after(step, event) is TRANSITIONS[step, event]
    else:
        with pytest.raises(ValueError, match="cannot be"):
            after(step, event)


def test_every_step_leads_to_the_end() -> None:
    """From each step every way ends at `done`, and nothing comes after it."""
    lengths = {Step.DONE: 0}
    for _ in Step:
        for step in Step:
            following = [to for (at, _), to in TRANSITIONS.items() if at is step]
            if following and all(each in lengths for each in following):
                lengths[step] = 1 + max(lengths[each] for each in following)
    assert set(lengths) == set(Step)
    assert not [event for step, event in TRANSITIONS if step is Step.DONE]


def test_whatever_was_granted_is_reported() -> None:
    """Only a refusal ends a run without a report."""
    silent = {(step, event) for (step, event), to in TRANSITIONS.items() if to is Step.DONE}
    assert silent == {(Step.CONFIRMING, Event.REFUSED), (Step.REPORTING, Event.ANSWERED)}


def test_stops_come_before_the_start_only() -> None:
    """A stop is an event of the steps before the start, and those hold room."""
    assert {step for step, event in TRANSITIONS if event is Event.STOPPED} == BEFORE_START
    assert {to for (_, event), to in TRANSITIONS.items() if event is Event.STOPPED} == {Step.REPORTING}
    assert BREAKABLE < BEFORE_START < HOLDS_ROOM


@pytest.mark.parametrize(("kept", "seen"), list(product(Kept, Seen)))
def test_every_run_goes_on_after_a_restart(kept: Kept, seen: Seen) -> None:
    """Whatever journal and runtime say of a run, it is clear where it goes on, and a live one is not started again."""
    step = RESUME[kept, seen]
    if seen is not Seen.ABSENT:
        assert step not in BEFORE_START


def test_the_tables_can_be_printed() -> None:
    """Both tables have one line for each of their entries."""
    lines = list(tables())
    assert len(lines) == len(TRANSITIONS) + len(RESUME)
    assert "confirming + granted -> staging" in lines
    assert "journal: accepted, runtime: live -> running" in lines
