"""Which of the nodes that could take a job takes it: what is preferred, then the price, then what is near. Pure."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from services.scheduler.board import Board
from services.scheduler.grid import Rows
from services.scheduler.shape import Shape

#: Tells the rows that are taken only where no other has room.
Last = Callable[[Board, Shape], npt.NDArray[np.bool_]]
#: Chooses one of several names.
Chance = Callable[[Sequence[str]], str]


def avoided(board: Board, shape: Shape) -> npt.NDArray[np.bool_]:
    """A node that lost an attempt of this job comes last."""
    return board.are(shape.avoid)


def needless_gpus(board: Board, shape: Shape) -> npt.NDArray[np.bool_]:
    """What needs no GPU stays off the nodes that have them."""
    return board.with_gpus if not shape.gpus else np.zeros(len(board.with_gpus), dtype=np.bool_)


LAST: tuple[Last, ...] = (avoided, needless_gpus)


def nearest(board: Board, rows: Rows, things: Sequence[str]) -> Rows:
    """Return the rows that hold most of the things."""
    held = np.array([board.holders.of(thing, len(board.cpu))[rows] for thing in things]).sum(axis=0)
    return np.compress(held == held.max(), rows)


def best(board: Board, shape: Shape, things: Sequence[str] = (), chance: Chance | None = None) -> str | None:
    """Return the node to take, None where none has room.

    Of nodes at the same price those are taken that hold most of the `things` which the run needs of its MAP. Between
    equals ids decide, so that a plan can be told again; or chance, to see that it does not matter.
    """
    price = board.scores(shape)
    least = price.min(initial=np.inf)
    if least == np.inf:
        return None
    for last in LAST:
        others = np.where(last(board, shape), np.inf, price)
        if (fewest := others.min()) < np.inf:
            price, least = others, fewest
    rows = np.flatnonzero(price == least)
    if things and len(rows) > 1 and board.holders:
        rows = nearest(board, rows, things)
    equal = [board.names[row] for row in rows]
    return chance(sorted(equal)) if chance else min(equal)
