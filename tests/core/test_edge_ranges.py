"""Range and conditional requests, as RFC 9110 has them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.edge.ranges import Span, Unsatisfiable, etag, not_modified, span

TAG = etag("ab")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", Span(0, 1)),
        ("bytes=2-4", Span(2, 3)),
        ("bytes=2-", Span(2, 8)),
        ("bytes=-3", Span(7, 3)),
        ("bytes=-30", Span(0, 10)),
        ("bytes=8-99", Span(8, 2)),
        (f"bytes=-{'9' * 5000}", Span(0, 10)),
        (f"bytes=8-{'9' * 5000}", Span(8, 2)),
        (f"bytes={'0' * 30}8-{'0' * 30}9", Span(8, 2)),
        ("Bytes = 8 - 9", Span(8, 2)),
        ("bytes=4-2", None),
        ("bytes=-", None),
        ("bytes=0-1,4-5", None),
        ("lines=0-1", None),
        ("bytes=a-b", None),
        ("bytes=+1-2", None),
        ("bytes=\u0661-\u0662", None),
    ],
)
def test_one_range_of_bytes_is_taken_and_everything_else_gets_the_whole(
    header: str | None, expected: Span | None
) -> None:
    """Of ten bytes one range is cut as the standard says; several, other units and what is malformed are ignored."""
    assert span(header, None, TAG, 10) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0", f"bytes={'9' * 5000}-"])
def test_a_range_outside_the_file_cannot_be_satisfied(header: str) -> None:
    """A range that has no byte of the file is refused, not answered with something else."""
    with pytest.raises(Unsatisfiable):
        span(header, None, TAG, 10)


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=-1"])
def test_an_empty_file_has_no_range(header: str) -> None:
    """No range of an empty file can be satisfied."""
    with pytest.raises(Unsatisfiable):
        span(header, None, TAG, 0)


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_range_lies_in_the_file(size: int, first: int, length: int) -> None:
    """Whatever is asked for, what is answered lies within the file and within what was asked for."""
    try:
        found = span(f"bytes={first}-{first + length}", None, TAG, size)
    except Unsatisfiable:
        assert first >= size
        return
    assert found is not None
    assert found.offset == first
    assert 0 < found.length <= min(length + 1, size - first)


def test_a_range_of_another_version_gets_the_whole() -> None:
    """`If-Range` gives the range only where the client's part is of the very same bytes."""
    assert span("bytes=0-1", TAG, TAG, 10) == Span(0, 2)
    assert span("bytes=0-1", '"other"', TAG, 10) is None
    assert span("bytes=0-1", f"W/{TAG}", TAG, 10) is None
    assert span("bytes=0-1", "Wed, 21 Oct 2015 07:28:00 GMT", TAG, 10) is None


def test_a_client_that_has_the_file_need_not_get_it_again() -> None:
    """`If-None-Match` holds against any of its tags, weak or strong, and `*`."""
    assert not_modified(TAG, TAG)
    assert not_modified(f'"x", W/{TAG}', TAG)
    assert not_modified("*", TAG)
    assert not not_modified('"x"', TAG)
    assert not not_modified(None, TAG)


def test_a_content_range_counts_to_the_last_byte() -> None:
    """`Content-Range` names first and last byte, not the one behind."""
    assert Span(2, 3).content_range(10) == "bytes 2-4/10"
