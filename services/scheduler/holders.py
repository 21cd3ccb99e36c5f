"""Which rows hold what of MAPs, kept between decisions: images, copies of folders, what MAPs bring along. Pure."""

import numpy as np
import numpy.typing as npt

from gurney.model.job import RunRequest
from gurney.model.run import short

#: Things for which a mask of the rows is kept: those that were asked for last.
MASKS = 512

Mask = npt.NDArray[np.bool_]


def needs(request: RunRequest) -> tuple[str, ...]:
    """Return what a run needs of its MAP, as nodes tell what they hold."""
    digests = (request.digest, request.content.digest) if request.content else (request.digest,)
    return tuple(map(short, digests))


class Holders:
    """Of one grid."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[str, ...]] = {}
        self._rows: dict[str, set[int]] = {}
        self._masks: dict[str, Mask] = {}

    def __len__(self) -> int:
        """Return how many things are held somewhere."""
        return len(self._rows)

    def put(self, row: int, things: tuple[str, ...]) -> None:
        """Note what a row holds now."""
        before = self._held.get(row, ())
        if before == things:
            return
        self._held[row] = things
        for thing in {*before} ^ {*things}:
            rows = self._rows.setdefault(thing, set())
            rows ^= {row}
            if not rows:
                del self._rows[thing]
            self._masks.pop(thing, None)

    def of(self, thing: str, rows: int) -> Mask:
        """Tell which of so many rows hold a thing; lent."""
        mask = self._masks.pop(thing, None)
        if mask is None or len(mask) != rows:
            mask = np.zeros(rows, dtype=np.bool_)
            mask[[*self._rows.get(thing, ())]] = True
        self._masks[thing] = mask  # the last one now
        if len(self._masks) > MASKS:
            del self._masks[next(iter(self._masks))]
        return mask
