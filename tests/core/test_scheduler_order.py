"""Who comes first, and the queue that keeps the order."""

from hypothesis import given

from gurney.model.job import PlacementRequest, Priority
from services.scheduler.order import Queue, entry_of
from services.scheduler.turns import RISES_AFTER
from tests.core.scheduler_builders import NOW, a_queue, a_request, job_id, places, some_requests


def order(*requests: PlacementRequest) -> list[str]:
    found = places(a_queue(*requests))
    return sorted(found, key=found.__getitem__)


def test_a_higher_priority_goes_first_and_then_the_older() -> None:
    """Priority decides, then age, then the id."""
    jobs = [
        a_request(1, priority=Priority.LOWER, age_s=60),
        a_request(2, age_s=5),
        a_request(3, age_s=10),
        a_request(4, priority=Priority.HIGHER),
        a_request(5, priority=Priority.IMMEDIATE),
        a_request(6, age_s=5),
    ]
    assert order(*jobs) == [job_id(number) for number in (5, 4, 3, 2, 6, 1)]


def test_waiting_makes_up_for_a_lower_priority() -> None:
    """A job that has waited for long enough goes before newer ones of the next priority."""
    long = RISES_AFTER.total_seconds()
    assert order(a_request(1, priority=Priority.HIGHER), a_request(2, age_s=long + 1)) == [job_id(2), job_id(1)]
    assert order(a_request(1, priority=Priority.HIGHER), a_request(2, age_s=long - 1)) == [job_id(1), job_id(2)]


def test_nothing_overtakes_what_is_immediate() -> None:
    """No age is enough for that."""
    assert order(a_request(1, priority=Priority.IMMEDIATE), a_request(2, age_s=1e7)) == [job_id(1), job_id(2)]


def test_a_later_attempt_replaces_an_earlier_one() -> None:
    """A job is in the queue once, at its newest attempt."""
    queue = a_queue(a_request(1, attempt=2), a_request(1, attempt=3), a_request(1, attempt=1))
    entry = queue.get(job_id(1))
    assert entry is not None
    assert (len(queue), entry.request.attempt) == (1, 3)


def test_only_the_attempt_that_is_meant_is_dropped() -> None:
    """A late cancellation of an earlier attempt leaves the job where it is."""
    queue = a_queue(a_request(1, attempt=2))
    queue.drop(job_id(1), 1)
    queue.drop(job_id(2))
    assert len(queue) == 1
    queue.drop(job_id(1), 2)
    assert len(queue) == 0


@given(some_requests())
def test_the_queue_is_what_it_holds(requests: list[PlacementRequest]) -> None:
    """Positions are 1 to n, lanes are in order, and a queue from which all is dropped keeps nothing."""
    queue = a_queue(*requests)
    assert sorted(places(queue).values()) == list(range(1, len(requests) + 1))
    for common, lane in queue.lanes.items():
        assert [entry.key for entry in lane] == sorted(entry.key for entry in lane)
        assert {entry.lane for entry in lane} == {common}
    for each in requests:
        queue.drop(each.job_id)
    assert (len(queue), dict(queue.lanes)) == (0, {})


def test_one_more_is_only_tried() -> None:
    """Trying a job in a queue leaves the queue as it is."""
    queue: Queue = a_queue(a_request(1))
    entry = entry_of(a_request(2), NOW)
    shapes = queue.with_one_more(entry)
    assert [each.job_id for each in shapes[entry.shape][entry.lane]] == [job_id(1), job_id(2)]
    assert len(queue.lanes[entry.lane]) == 1
