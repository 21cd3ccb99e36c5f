"""A run's log when the run has ended: its last lines, and what of it is kept. All of it blocks."""

from dataclasses import dataclass
from pathlib import Path

#: A log up to this size is kept whole; of a longer one the first and the last half of it.
WHOLE = 64 << 20
TAIL_BYTES = 16 * 1024
TAIL_LINES = 100
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Log:
    """What there is to keep."""

    #: The file to be kept; None: nothing was written.
    source: Path | None = None
    tail: tuple[str, ...] = ()


def marker(left_out: int) -> bytes:
    """Return the line that stands where the middle of a long log was; nothing else stands in it."""
    return f"\n[gurney: {left_out} bytes of the log are left out here]\n".encode()


def look_at(path: Path, draft: Path) -> Log:
    """Return what is kept of the log at `path`; a shortened copy is made at `draft`."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return Log()
    if not size:
        return Log()
    tail = last_lines(_read(path, max(0, size - TAIL_BYTES)), cut=size > TAIL_BYTES)
    if size > WHOLE:
        _shorten(path, size, draft)
        return Log(draft, tail)
    return Log(path, tail)


def last_lines(data: bytes, *, cut: bool) -> tuple[str, ...]:
    """Return the last lines of the text, at most 100 and 16 KiB; `cut`: the first line may begin before `data`."""
    lines = data.decode(errors="replace").replace("\r\n", "\n").removesuffix("\n").split("\n")
    if cut and len(lines) > 1:
        lines = lines[1:]
    kept: list[str] = []
    room = TAIL_BYTES
    for line in reversed(lines[-TAIL_LINES:]):
        room -= len(line.encode()) + 1
        if room < 0:
            break
        kept.append(line)
    if not kept:  # one endless line
        kept.append(lines[-1].encode()[-TAIL_BYTES + 1 :].decode(errors="ignore"))
    return tuple(reversed(kept))


def _read(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(TAIL_BYTES)


def _shorten(path: Path, size: int, draft: Path) -> None:
    half = WHOLE // 2
    with path.open("rb") as source, draft.open("wb") as target:
        for start in (0, size - half):
            if start:
                target.write(marker(size - WHOLE))
            source.seek(start)
            left = half
            while left and (block := source.read(min(left, _BLOCK))):
                target.write(block)
                left -= len(block)
