"""How figures are shown: minimum, median and maximum, and ratios to what they are compared with in the same run."""

import statistics
from collections.abc import Sequence


def row(name: str, values: Sequence[float], unit: str) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{name:<44} {low:>9.2f} {middle:>9.2f} {high:>9.2f}  {unit}"


def ratio(name: str, ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return the ratios of pairs that were measured one after the other."""
    return row(name, [a / b for a, b in zip(ours, theirs, strict=True)], "x")


HEAD = f"{'':<44} {'min':>9} {'median':>9} {'max':>9}"
