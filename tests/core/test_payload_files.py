"""The life of one path: no committed content is lost, nothing that has bytes is forgotten."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gurney.errors import Conflict, NotFound, Unavailable
from gurney.model.payload import Content, File, Mark, Upload
from services.payload import file_machine as m

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def upload(number: int, at: datetime = START) -> Upload:
    return Upload(key=f"pay_x/upl_{number}", begun_at=at)


def content(number: int) -> Content:
    return Content(key=f"pay_x/upl_{number}", size=number, sha256="0" * 64, created_at=START)


def begun(*numbers: int) -> File:
    file = m.fresh("pay_x/a", "pay_x", "a", upload(numbers[0]))
    for number in numbers[1:]:
        file = m.begin(file, upload(number))
    return file


def committed(number: int = 1) -> File:
    file = m.commit(begun(number), content(number), None)
    assert file
    return file


def keys(file: File | None) -> set[str]:
    return set(m.all_keys(file)) if file else set()


def test_a_commit_replaces_in_one_step() -> None:
    """The pending upload becomes the content and the old content garbage, in one document."""
    after = m.commit(m.begin(committed(1), upload(2)), content(2), None)
    assert after
    assert (m.content_key(after), after.pending, after.garbage) == ("pay_x/upl_2", (), ("pay_x/upl_1",))


def test_a_commit_needs_a_pending_upload() -> None:
    """What was given up, or never begun, cannot become content."""
    given_up = m.abandon(begun(1, 2), {"pay_x/upl_1"}, START)
    assert given_up
    for number in (1, 3):
        with pytest.raises(Conflict):
            m.commit(given_up, content(number), None)


def test_a_repeated_commit_changes_nothing() -> None:
    """The same key committed again is the same document."""
    file = committed()
    assert m.commit(file, content(1), None) is file


def test_an_abandon_spares_what_is_committed() -> None:
    """An abandon that comes after the commit finds nothing to give up."""
    file = committed()
    assert m.abandon(file, {"pay_x/upl_1"}, START) is file


def test_nothing_is_left_of_an_abandoned_upload_once_its_bytes_are_gone() -> None:
    """The document goes with its last garbage."""
    given_up = m.abandon(begun(1), {"pay_x/upl_1"}, START)
    assert given_up
    assert m.forget(given_up, {"pay_x/upl_1"}) is None


def test_a_change_needs_its_own_mark() -> None:
    """A change whose mark was cleared, or is another's, is refused; a second mark waits."""
    file = m.begin(committed(1), upload(2))
    marked = m.mark(file, Mark(id="mine", at=START))
    with pytest.raises(m.Busy):
        m.mark(marked, Mark(id="other", at=START))
    for late in (file, marked):
        with pytest.raises(Unavailable):
            m.commit(late, content(2), "other")
        with pytest.raises(Unavailable):
            m.remove(late, "other", START)
    after = m.commit(marked, content(2), "mine")
    assert after
    assert after.changing is None


def test_a_mark_lasts_for_some_seconds() -> None:
    """Whoever comes later takes the place of one who was stopped, and may not make his change any more."""
    marked = m.mark(m.begin(committed(1), upload(2)), Mark(id="stopped", at=START))
    after = m.mark(marked, Mark(id="next", at=START + m.MARK_LASTS))
    with pytest.raises(Unavailable):
        m.commit(after, content(2), "stopped")
    assert m.commit(after, content(2), "next")


def test_a_mark_is_taken_back_by_its_maker_only() -> None:
    """Unmarking by another changes nothing; by the maker it leaves the file as it was."""
    file = committed()
    marked = m.mark(file, Mark(id="mine", at=START))
    assert m.unmark(marked, "other") is marked
    assert m.unmark(marked, "mine") == file.but(revision=file.revision + 2)


def test_removing_what_is_not_there_is_refused() -> None:
    """A file without content is not found."""
    with pytest.raises(NotFound):
        m.remove(begun(1), "mark", START)
    with pytest.raises(NotFound):
        m.view(begun(1))
    with pytest.raises(NotFound):
        m.content_key(begun(1))


def test_the_sweep_takes_only_what_is_old() -> None:
    """Marks and uploads that began before the limits are given up, younger ones stay."""
    file = m.begin(begun(1), upload(2, START + 2 * HOUR))
    file = m.mark(file, Mark(id="mine", at=START))
    assert m.sweep(file, START, START) is file
    after = m.sweep(file, START + HOUR, START + HOUR)
    assert after
    assert after.revision == file.revision + 1
    assert (after.changing, [each.key for each in after.pending]) == (None, ["pay_x/upl_2"])
    assert after.garbage == ("pay_x/upl_1",)


def key_of(number: int) -> str:
    return f"pay_x/upl_{number}"


DO: dict[str, Callable[[File, int], File | None]] = {
    "begin": lambda file, number: file if key_of(number) in keys(file) else m.begin(file, upload(number)),
    "commit": lambda file, number: m.commit(file, content(number), file.changing.id if file.changing else None),
    "abandon": lambda file, number: m.abandon(file, {key_of(number)}, START),
    "mark": lambda file, _: m.mark(file, Mark(id="mark", at=START)),
    "unmark": lambda file, _: m.unmark(file, "mark"),
    "remove": lambda file, _: m.remove(file, "mark", START),
    "forget": lambda file, number: m.forget(file, {key_of(number)}),
    "sweep": lambda file, _: m.sweep(file, START + HOUR, START + HOUR),
}
STEPS = st.lists(st.tuples(st.sampled_from(sorted(DO)), st.integers(0, 5)), max_size=30)


@given(STEPS)
def test_every_stored_object_is_known_until_its_bytes_are_gone(steps: list[tuple[str, int]]) -> None:
    """Whatever happens to a path, a key leaves its document through `forget` only; the rest is as `unsettled` says."""
    file: File | None = None
    alive: set[str] = set()
    for name, number in steps:
        before = file
        file = _step(file, name, number)
        if name == "begin":
            alive.add(f"pay_x/upl_{number}")
        if name == "forget" and before:
            alive -= {f"pay_x/upl_{number}"} & set(before.garbage)
        assert keys(file) == alive
        if file:
            assert (file.unsettled is None) == (not file.pending and not file.garbage and not file.changing)
            assert file.content or file.unsettled
        if before and file is not before and file:
            assert file.revision == before.revision + 1


def _step(file: File | None, name: str, number: int) -> File | None:
    if file is None:
        return begun(number) if name == "begin" else None
    try:
        return DO[name](file, number)
    except (Conflict, NotFound, Unavailable):
        return file
