"""For each shape which nodes have room and at what price, kept between decisions. Pure.

What is known for a shape is found anew for the rows that have changed since it was last asked for, and for no others.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from services.scheduler.demand import Typical
from services.scheduler.fragments import TOGETHER, Floats, Ints
from services.scheduler.grid import READY, Grid, Rows, runs
from services.scheduler.shape import NEVER, Shape, takes

#: What a whole node's room weighs in GPUs, beside fragmentation: of nodes where that is about the same, the fuller one.
FIT = 0.1
#: Shapes for which rows are kept; those that were asked for last.
COLUMNS = 512
#: Below this many rows it costs more to look for equal ones than to weigh each.
FEW = 64


class Column:
    """What is known for one shape, by row."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        #: The lower the better; infinite where there is no room.
        self.score = np.full(0, np.inf)
        #: Rows that have room and whose price nobody has asked for.
        self.due: set[int] = set()
        #: How many changes of rows it knows of.
        self.seen = -1
        self.takes = np.full(1, NEVER, dtype=np.int64)
        self.runs = np.zeros(0, dtype=np.bool_)
        #: How many GPUs of most nodes would do, as of so many changes of what nodes have.
        self.usual = 0
        self.makes = -1


class Board(Grid):
    """One per cluster, or for one look at it."""

    def __init__(self, typical: Sequence[Typical] = (), together: float = TOGETHER) -> None:
        super().__init__(typical, together)
        #: Counts the changes that its keeper made; what a plan tries and takes back does not count.
        self.edition = 0
        self._columns: dict[Shape, Column] = {}

    def scores(self, shape: Shape) -> Floats:
        """Return the price of a shape on each row, infinite where there is no room; lent until the next change."""
        column = self._column(shape)
        self._look(column)
        if column.due:
            self._find_price(column)
        return column.score

    def price(self, shape: Shape, name: str) -> float:
        """Return the price of a shape on one node; infinite where it has no room, or is not here."""
        return float(self.scores(shape)[self._row[name]]) if name in self._row else np.inf

    def with_room(self, shape: Shape) -> list[str]:
        """Return the nodes that have room for a shape."""
        column = self._column(shape)
        self._look(column)
        rows = [*np.flatnonzero(column.score < np.inf).tolist(), *column.due]
        return [self.names[row] for row in rows]

    def has_room(self, shape: Shape) -> bool:
        """Tell whether any row has room for a shape."""
        column = self._column(shape)
        self._look(column)
        return bool(column.due) or bool(column.score.min(initial=np.inf) < np.inf)

    def able(self, shape: Shape) -> list[str]:
        """Return the nodes that would have room if nothing were in use, first those with most free GPUs that do."""
        column = self._column(shape)
        rows = np.flatnonzero(self._suited(column) >= shape.gpus)
        free = (self.free[rows] >= column.takes[self.kind[rows]]).sum(axis=1)
        return [self.names[row] for row in rows[np.argsort(-free, kind="stable")].tolist()]

    def usual(self, shape: Shape) -> int:
        """Return how many GPUs would do of the nodes that could hold a shape: the median; 0: there are none."""
        column = self._column(shape)
        if column.makes != self.makes:
            suited = self._suited(column)
            able = suited[suited >= shape.gpus]
            column.makes, column.usual = self.makes, int(np.median(able)) if len(able) else 0
        return column.usual

    def _suited(self, column: Column) -> Ints:
        """Return how many GPUs of each row would do; -1 where the rest of the node does not."""
        self._learn(column)
        shape = column.shape
        able = (self.standing == READY) & column.runs[self.home]
        able &= (self.size[:, 0] >= shape.cpu) & (self.size[:, 1] >= shape.memory)
        return np.where(able, (column.takes[self.kind] < NEVER).sum(axis=1), -1)

    def _column(self, shape: Shape) -> Column:
        key = replace(shape, avoid=()) if shape.avoid else shape
        column = self._columns.pop(key, None) or Column(key)
        self._columns[key] = column  # the last one now
        if len(self._columns) > COLUMNS:
            del self._columns[next(iter(self._columns))]
        return column

    def _look(self, column: Column) -> None:
        """Find out which of the rows that have changed have room."""
        if column.seen == self.changes:
            return
        changed = self.changed_since(column.seen)
        column.seen = self.changes
        if changed is None:
            column.score = np.full(len(self.cpu), np.inf)
            column.due.clear()
            rows = np.arange(len(self.names))
        else:
            for row in changed:
                column.score[row] = np.inf
            column.due -= changed
            rows = np.array([row for row in changed if not self.is_short(row, column.shape)], dtype=np.intp)
            if not len(rows):
                return
        self._learn(column)
        column.due.update(rows[self._may(column, rows)].tolist())

    def _find_price(self, column: Column) -> None:
        rows = np.array(sorted(column.due), dtype=np.intp)
        column.due.clear()
        if len(rows) < FEW:
            column.score[rows] = self._score(column, rows)
            return
        _, first, which = np.unique(self._state[rows], return_index=True, return_inverse=True)
        column.score[rows] = self._score(column, rows[first])[which]

    def _learn(self, column: Column) -> None:
        """Have the column know all kinds of nodes and GPUs."""
        if len(column.runs) < len(self.homes):
            column.runs = np.array([runs(home, column.shape) for home in self.homes], dtype=np.bool_)
        if len(column.takes) <= len(self.devices):
            known = [takes(device, column.shape) for device in self.devices]
            column.takes = np.array([*known, NEVER], dtype=np.int64)

    def _may(self, column: Column, rows: Rows) -> npt.NDArray[np.bool_]:
        """Tell which rows have room."""
        shape = column.shape
        room: npt.NDArray[np.bool_] = (
            (self.standing[rows] == READY) & (self.cpu[rows] >= shape.cpu) & (self.memory[rows] >= shape.memory)
        )
        room &= column.runs[self.home[rows]]
        if shape.gpus:
            room &= (self.free[rows] >= column.takes[self.kind[rows]]).sum(axis=1) >= shape.gpus
        return room

    def _score(self, column: Column, rows: Rows) -> Floats:
        """Return the price for rows that have room."""
        shape = column.shape
        if shape.gpus != 1:
            taken = self._first(column, rows) if shape.gpus else np.zeros((len(rows), 0), dtype=np.int64)
            return self._price(shape, rows, taken)
        place, gpu = np.nonzero(self.free[rows] >= column.takes[self.kind[rows]])
        price = self._price(shape, rows[place], self._taken(column, rows[place], gpu))
        starts = np.flatnonzero(np.diff(place, prepend=-1))
        least: Floats = np.minimum.reduceat(price, starts)
        return least

    def _first(self, column: Column, rows: Rows) -> Ints:
        """Return what is taken of each GPU where the first that have room are."""
        wanted = column.takes[self.kind[rows]]
        fits = self.free[rows] >= wanted
        return np.where(fits & (fits.cumsum(axis=1) <= column.shape.gpus), wanted, 0)

    def _taken(self, column: Column, rows: Rows, gpu: Rows) -> Ints:
        """Return what is taken of each GPU where it is one of these."""
        taken = np.zeros((len(rows), self.free.shape[1]), dtype=np.int64)
        taken[np.arange(len(rows)), gpu] = column.takes[self.kind[rows, gpu]]
        return taken

    def _price(self, shape: Shape, rows: Rows, taken: Ints) -> Floats:
        """Return what typical tasks lose, and how full the node is not, when this much is taken of each GPU."""
        use = self._use.at(rows)
        gpus = self.idle[rows]
        for gpu in np.flatnonzero(taken.any(axis=0)):
            some = np.flatnonzero(taken[:, gpu])
            kind, before = self.kind[rows[some], gpu], self.free[rows[some], gpu]
            after = before - taken[some, gpu]
            with_it, without = self.fragments.use(kind, before), self.fragments.use(kind, after)
            for each, more, less in zip(use, without, with_it, strict=True):
                each[some] += more - less
            gpus[some] -= taken[some, gpu] / self.fragments.mib(kind)
        cpu, memory = self.cpu[rows] - shape.cpu, self.memory[rows] - shape.memory
        left = self.fragments.usable(cpu, memory, self.home[rows], use)
        fit = (cpu / self.largest[0] + memory / self.largest[1] + gpus / self.largest[2]) / 3
        price: Floats = np.round(self._usable[rows] - left + FIT * fit, 9)
        return price

    def gpus_for(self, shape: Shape, name: str) -> tuple[list[int], int]:
        """Return which GPUs of a node a shape takes there, by place, and how many MiB of one; 0: all of each.

        Of several that cost the same, the one with the least left.
        """
        if not shape.gpus:
            return [], 0
        column = Column(replace(shape, avoid=()))
        self._learn(column)
        row = self._row[name]
        wanted = column.takes[self.kind[row]]
        fits = np.flatnonzero(self.free[row] >= wanted)
        if shape.gpus > 1:
            return fits[: shape.gpus].tolist(), 0
        rows = np.full(len(fits), row)
        price = self._price(column.shape, rows, self._taken(column, rows, fits))
        best = min(range(len(fits)), key=lambda each: (price[each], self.free[row, fits[each]], each))
        gpu = int(fits[best])
        device, _ = self._rooms[row].gpus[gpu]
        return [gpu], int(wanted[gpu]) if shape.gpu_share and wanted[gpu] < device.mib else 0
