"""A run's log is put together in order, whatever comes twice, too late or not at all."""

from hypothesis import given
from hypothesis import strategies as st

from gurney.model.run import LogChunk
from services.edge.log_text import HEAD, Decoder, Joiner, kept_offset


def chunk(offset: int, text: str) -> LogChunk:
    return LogChunk(run_id="job-1", offset=offset, size=len(text.encode()), text=text)


def test_chunks_in_order_are_the_log() -> None:
    """What comes in order goes out as it came."""
    joiner = Joiner()
    pieces = [joiner.take(chunk(0, "ab")), joiner.take(chunk(2, "cd"))]
    assert [(piece.offset, piece.text, piece.missing) for piece in pieces if piece] == [(0, "ab", 0), (2, "cd", 0)]
    assert joiner.offset == 4


def test_what_was_seen_is_not_shown_again() -> None:
    """A chunk that was seen adds nothing, one that overlaps adds its end."""
    joiner = Joiner(3)
    assert joiner.take(chunk(0, "abc")) is None
    piece = joiner.take(chunk(1, "bcde"))
    assert piece is not None
    assert (piece.offset, piece.text) == (3, "de")


def test_a_gap_is_told_with_its_length() -> None:
    """Bytes that did not come are counted."""
    piece = Joiner(2).take(chunk(7, "x"))
    assert piece is not None
    assert (piece.offset, piece.missing) == (7, 5)


@given(st.text(), st.data())
def test_whatever_is_repeated_the_log_comes_out_once(text: str, data: st.DataObject) -> None:
    """Chunks that overlap in any way, without a gap, give the log exactly."""
    whole = text.encode()
    joiner, out = Joiner(), ""
    while joiner.offset < len(whole):
        start = data.draw(st.integers(0, joiner.offset))
        end = data.draw(st.integers(joiner.offset + 1, len(whole)))
        part = whole[_boundary(whole, start) : _boundary(whole, end, forward=True)]
        piece = joiner.take(chunk(_boundary(whole, start), part.decode()))
        assert piece is not None
        assert not piece.missing
        out += piece.text
    assert out == text


def _boundary(whole: bytes, at: int, *, forward: bool = False) -> int:
    """Chunks of live logs never cut a character in two."""
    while 0 < at < len(whole) and whole[at] & 0xC0 == 0x80:
        at += 1 if forward else -1
    return at


@given(st.text(), st.lists(st.integers(1, 5), max_size=30))
def test_kept_bytes_become_text_without_cutting_characters(text: str, sizes: list[int]) -> None:
    """Wherever the bytes are cut, the text is the same, and each piece says where it begins."""
    whole, at = text.encode(), 0
    decoder, out = Decoder(0), ""
    for size in [*sizes, len(whole) + 1]:
        piece = decoder.take(whole[at : at + size], last=at + size >= len(whole))
        assert piece.offset == len(out.encode())
        out += piece.text
        at += size
    assert out == text
    assert decoder.offset == len(whole)


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    """What is not UTF-8 is replaced, never an error, also at the very end."""
    decoder = Decoder(0)
    assert decoder.take(b"a\xff\xc3").text == "a\ufffd"
    assert decoder.take(b"", last=True).text == "\ufffd"


def test_a_shortened_log_goes_on_at_the_right_place() -> None:
    """Behind the line that tells how much is left out, offsets of the run and of the kept log differ by that much."""
    line = b"\n[gurney: 1000 bytes of the log are left out here]\n"
    middle = line + b"tail"
    assert kept_offset(5, middle) == 5
    assert kept_offset(HEAD, middle) == HEAD
    assert kept_offset(HEAD + 400, middle) == HEAD
    assert kept_offset(HEAD + 1000, middle) == HEAD + len(line)
    assert kept_offset(HEAD + 1003, middle) == HEAD + len(line) + 3
    assert kept_offset(HEAD + 7, b"no such line") == HEAD + 7
