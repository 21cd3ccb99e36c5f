"""The log of a run, put together from what was sent live and from what is kept. Pure.

Offsets count bytes of what the run wrote. A very long log is kept as its head and its tail, with a line between them
that tells how much is left out; from there on the offsets of the kept object are others.
"""

import codecs
import re
from dataclasses import dataclass

from gurney.model.run import LogChunk

#: A kept log is longer than this only if its middle was left out; the line about it stands behind the first half.
WHOLE = 64 << 20
HEAD = WHOLE // 2
#: Bytes within which that line lies.
MARKER_MOST = 128

_MARKER = re.compile(rb"\n\[gurney: (\d{1,18}) bytes of the log are left out here\]\n")


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new: `text` that begins at `offset`, `missing` bytes before it that are not there."""

    offset: int
    text: str
    missing: int = 0


class Joiner:
    """Puts live chunks in order: what was seen is dropped, what is missing is told."""

    def __init__(self, offset: int = 0) -> None:
        #: Up to where the log was seen.
        self.offset = offset

    def take(self, chunk: LogChunk) -> Piece | None:
        """Return what a chunk adds, None where it adds nothing."""
        end = chunk.offset + (chunk.size or len(chunk.text.encode()))
        if end <= self.offset:
            return None
        seen = max(0, self.offset - chunk.offset)
        piece = Piece(max(chunk.offset, self.offset), _without(chunk.text, seen), max(0, chunk.offset - self.offset))
        self.offset = end
        return piece


def _without(text: str, seen: int) -> str:
    return text.encode()[seen:].decode(errors="ignore") if seen else text


class Decoder:
    """Makes pieces of text of a log's bytes, whatever they are; no character is cut in two."""

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def take(self, data: bytes, *, last: bool = False) -> Piece:
        held = len(self._decoder.getstate()[0])
        piece = Piece(self._offset - held, self._decoder.decode(data, last))
        self._offset += len(data)
        return piece

    @property
    def offset(self) -> int:
        """Up to where the text goes that was given out."""
        return self._offset - len(self._decoder.getstate()[0])


def kept_offset(offset: int, middle: bytes) -> int:
    """Return where in the kept object the log goes on at `offset`; `middle` are its bytes from `HEAD` on."""
    marker = _MARKER.match(middle)
    if marker is None or offset <= HEAD:
        return offset
    left_out = int(marker[1])
    if offset < HEAD + left_out:
        return HEAD
    return offset - left_out + marker.end()
