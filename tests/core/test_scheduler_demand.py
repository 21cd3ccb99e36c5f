"""What is typical: the most frequent shapes, newer requests counting more than older ones."""

from datetime import timedelta

import pytest

from services.scheduler.demand import HALF_LIFE, Demand, task_of, typical_of
from services.scheduler.shape import Shape
from tests.core.scheduler_builders import NOW

SMALL, LARGE = Shape("urn:oci:", cpu=1000), Shape("urn:oci:", cpu=8000, gpus=1)


def test_the_most_frequent_shapes_that_cover_most_requests_are_typical() -> None:
    """What is rare is left out, and the shares of the rest add up to one."""
    rare = Shape("urn:oci:", cpu=1)
    assert [tuple(each) for each in typical_of({rare: 4, LARGE: 64, SMALL: 32})] == [(LARGE, 2 / 3), (SMALL, 1 / 3)]
    assert typical_of({}) == ()


def test_maps_of_one_runtime_are_the_same_task() -> None:
    """Which image it is, and what a job avoids, says nothing about room; what runs it does."""
    first, second = Shape("urn:oci:a/b:1", cpu=1, avoid=("n1",)), Shape("urn:oci:c@sha256:0", cpu=1)
    assert task_of(first) == task_of(second) == Shape("urn:oci:", cpu=1)
    assert task_of(Shape("urn:gurney:dir:x")) == Shape("urn:gurney:dir:")


def test_old_requests_fade() -> None:
    """After a half-life a request counts half of a new one; what is typical follows, and in the end forgets."""
    demand = Demand()
    assert demand.typical == ()
    for _ in range(4):
        demand.saw(SMALL, NOW)
    demand.saw(LARGE, NOW + HALF_LIFE)
    assert dict(demand.typical) == pytest.approx({SMALL: 2 / 3, LARGE: 1 / 3})
    demand.saw(LARGE, NOW + 40 * HALF_LIFE)
    assert list(dict(demand.typical)) == [LARGE]
    demand.saw(LARGE, NOW - timedelta(days=9))  # the clock went back: nothing breaks


def test_what_is_typical_stays_for_a_while() -> None:
    """A few requests among many do not change it, so that what is derived from it can be kept."""
    demand = Demand()
    for _ in range(100):
        demand.saw(SMALL, NOW)
    before = demand.typical
    for _ in range(25):
        demand.saw(LARGE, NOW)
        assert demand.typical is before
    for _ in range(9):
        demand.saw(LARGE, NOW)
    assert demand.typical != before
