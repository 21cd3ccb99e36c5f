"""Which of the nodes that could take a job takes it: what is preferred, then the price, then what is near. Pure."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from services.scheduler.board import Board
from services.scheduler.shape import Shape
from services.scheduler.snapshot import NodeView

#: Tells the rows that are taken only where no other has room.
Last = Callable[[Board, Shape], npt.NDArray[np.bool_]]
#: Tells nodes of the same price apart; the least goes first.
Scorer = Callable[[NodeView, Shape], float]
#: Chooses one of several names.
Chance = Callable[[Sequence[str]], str]


def avoided(board: Board, shape: Shape) -> npt.NDArray[np.bool_]:
    """A node that lost an attempt of this job comes last."""
    return board.are(shape.avoid)


def needless_gpus(board: Board, shape: Shape) -> npt.NDArray[np.bool_]:
    """What needs no GPU stays off the nodes that have them."""
    return board.with_gpus if not shape.gpus else np.zeros(len(board.with_gpus), dtype=np.bool_)


LAST: tuple[Last, ...] = (avoided, needless_gpus)
#: Below the price: where the image is, and the input. Agents do not report them yet.
NEARER: tuple[Scorer, ...] = ()


def best(board: Board, shape: Shape, nodes: Mapping[str, NodeView], chance: Chance | None = None) -> str | None:
    """Return the node to take, None where none has room.

    Between equals ids decide, so that a plan can be told again; or chance, to see that it does not matter.
    """
    price = board.scores(shape)
    least = price.min(initial=np.inf)
    if least == np.inf:
        return None
    for last in LAST:
        others = np.where(last(board, shape), np.inf, price)
        if (fewest := others.min()) < np.inf:
            price, least = others, fewest
    equal = [board.names[row] for row in np.flatnonzero(price == least)]
    if NEARER and len(equal) > 1:
        near = {name: tuple(score(nodes[name], shape) for score in NEARER) for name in equal}
        equal = [name for name in equal if near[name] == min(near.values())]
    return chance(sorted(equal)) if chance else min(equal)
