"""What is written of projects and MAPs for the next leader, and what is forgotten."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from gurney.model.run import RunTimes
from services.scheduler.history import Book
from services.scheduler.predict import MAPS, RUNS, UNKNOWN_S, Durations
from services.scheduler.repository import RUN_TIMES
from services.scheduler.shares import HALF_LIFE, Past, Shares
from tests.core.scheduler_builders import NOW

Times = dict[str, tuple[float, ...]]
TIMES = st.dictionaries(st.sampled_from("abc"), st.tuples(st.sampled_from((1.0, 2.0))))


def times(digest: str, seconds: tuple[float, ...], epoch: int) -> RunTimes:
    return RunTimes(id=digest, epoch=epoch, seconds=seconds)


@given(st.lists(st.tuples(TIMES, st.sets(st.sampled_from("abc")))))
def test_what_is_written_follows_what_is_known(steps: list[tuple[Times, set[str]]]) -> None:
    """A document is written when its value is another, whoever wrote that, and goes when nobody knows it."""
    book = Book[tuple[float, ...]](RUN_TIMES, times)
    written: dict[str, RunTimes] = {}
    for known, taken in steps:
        for name in taken:
            found = written.get(name)
            written[name] = times(name, (9.0,), 1).but(revision=found.revision + 1 if found else 1)
            book.found(name, written[name].revision, None)
        before = dict(written)
        for write, value in list(book.changes(known, 7)):
            assert write.expected == (written[write.id].revision if write.id in written else 0)
            if isinstance(write.document, RunTimes):
                written[write.id] = write.document
                book.found(write.id, write.document.revision, value)
            else:
                del written[write.id]
                book.found(write.id, 0, None)
        assert {name: each.seconds for name, each in written.items()} == known
        untouched = [name for name in known if name in before and before[name].seconds == known[name]]
        assert all(written[name] is before[name] for name in untouched)
        assert not list(book.changes(known, 8))


def test_runs_of_before_count_like_those_of_now() -> None:
    """What was noted before is taken in at once; the last ones count."""
    durations = Durations()
    durations.note("a", *(1.0 for _ in range(RUNS)))
    durations.note("a", *(3.0 for _ in range(RUNS // 2 + 1)))
    assert durations.expected("a") == 3.0
    assert len(durations.known["a"]) == RUNS


def test_the_map_goes_of_which_nothing_was_noted_for_longest() -> None:
    """So what is written has a bound."""
    durations = Durations()
    for number in range(MAPS):
        durations.note(str(number), 1.0)
    durations.note("0", 1.0)
    durations.note("new", 1.0)
    assert len(durations.known) == MAPS
    assert "1" not in durations.known
    assert (durations.expected("0"), durations.expected("1")) == (1.0, UNKNOWN_S)


def test_a_project_whose_use_has_faded_away_is_forgotten() -> None:
    """What is left of it says nothing any more; what another has had is kept."""
    shares = Shares()
    shares.recall("old", Past(1.0, NOW - 40 * HALF_LIFE))
    shares.ended("young", 0.5, NOW - timedelta(hours=1), NOW)
    assert list(shares.pasts(NOW)) == ["young"]
    assert list(shares.had(NOW)) == ["young"]
