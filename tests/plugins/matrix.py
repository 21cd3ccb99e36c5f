"""The matrix of bad input: which status every route answered, collected while the end-to-end tests run.

The helper through which those tests speak HTTP calls `record`. `tests/e2e/matrix_cells.py` says what must be seen:

- `ROUTES`: every (method, route template), in the order of the table of routes
- `STATUSES`: the status codes of the bad-input list
- `CANNOT`: (method, route template, status) -> the reason why this cell cannot occur

With `--whole` one more test runs last: it fails for every cell that is neither seen nor excused, for an excuse that the
run refutes, and for an answer of a route that is not in the list.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CELLS = "tests.e2e.matrix_cells"

Cell = tuple[str, str, int]


@dataclass(frozen=True)
class Cells:
    """What must be seen: the data of `tests/e2e/matrix_cells.py`."""

    routes: Sequence[tuple[str, str]]
    statuses: Sequence[int]
    cannot: Mapping[Cell, str]


@dataclass
class Matrix:
    """What was seen: (method, route, status) -> the cases that led there."""

    seen: defaultdict[Cell, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def record(self, route: str, method: str, status: int, case: str) -> None:
        """Note one answer."""
        self.seen[method, route, status][case] += 1

    def faults(self, cells: Cells) -> list[str]:
        """Return what keeps the matrix from being whole, one line each."""
        wanted = [(method, route, status) for method, route in cells.routes for status in cells.statuses]
        empty = [
            f"{_name(cell)}: no test led here" for cell in wanted if cell not in self.seen and cell not in cells.cannot
        ]
        refuted = [
            f"{_name(cell)}: excused ({cells.cannot[cell]}), but seen by: {', '.join(self.seen[cell])}"
            for cell in cells.cannot
            if cell in self.seen
        ]
        idle = [f"{_name(cell)}: excused, but no cell of the matrix" for cell in cells.cannot if cell not in wanted]
        strange = sorted({f"{m} {r}: answered, but not in the list" for m, r, _ in self.seen} - _known(cells.routes))
        return empty + refuted + idle + strange

    def lines(self, cells: Cells) -> list[str]:
        """Return the matrix as a table: how many cases led to a cell, `-` where it cannot occur, `EMPTY` else."""
        width = max((len(f"{method} {route}") for method, route in cells.routes), default=0)
        head = " ".join(f"{status:>5}" for status in cells.statuses)
        lines = [f"{'':{width}} {head}"]
        for method, route in cells.routes:
            row = [self._cell((method, route, status), cells.cannot) for status in cells.statuses]
            lines.append(f"{f'{method} {route}':{width}} {' '.join(row)}")
        return lines

    def _cell(self, cell: Cell, cannot: Collection[Cell]) -> str:
        if cell in self.seen:
            return f"{len(self.seen[cell]):>5}"
        return f"{'-' if cell in cannot else 'EMPTY':>5}"


def _name(cell: Cell) -> str:
    return f"{cell[0]} {cell[1]} {cell[2]}"


def _known(routes: Sequence[tuple[str, str]]) -> set[str]:
    return {f"{method} {route}: answered, but not in the list" for method, route in routes}


#: The matrix of this process.
MATRIX = Matrix()


def record(route_template: str, method: str, status: int, case: str) -> None:
    """Note that `method route_template` answered `status`; `case` names the input that led there."""
    MATRIX.record(route_template, method, status, case)


def load_cells() -> Cells:
    """Return what must be seen."""
    module = import_module(CELLS)
    return Cells(module.ROUTES, module.STATUSES, module.CANNOT)


class MatrixItem(pytest.Item):
    """The last test of a whole run: no cell is empty."""

    def runtest(self) -> None:
        """Hold what was seen against what must be seen."""
        if faults := MATRIX.faults(load_cells()):
            raise IncompleteMatrixError(faults)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None) -> str:
        """Show the cells, without a stack of no interest."""
        del style
        return str(excinfo.value)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Name the test."""
        return TESTS / "e2e" / "matrix_cells.py", 0, "no cell of the matrix of bad input is empty"


class IncompleteMatrixError(AssertionError):
    """Cells are empty, or the list is wrong about them."""

    def __init__(self, faults: list[str]) -> None:
        """Tell all faults, one a line."""
        super().__init__("\n".join([f"{len(faults)} fault(s) of the matrix of bad input:", *faults]))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the last test where the whole run has end-to-end tests."""
    if config.getoption("--whole") and any(item.path.is_relative_to(TESTS / "e2e") for item in items):
        items.append(MatrixItem.from_parent(session, name="matrix"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the matrix when something was seen."""
    if MATRIX.seen and (TESTS / "e2e" / "matrix_cells.py").exists():
        terminalreporter.section("bad input: cases by route and status")
        for line in MATRIX.lines(load_cells()):
            terminalreporter.write_line(line)
