"""The list of bad input covers the table of routes."""

from services.edge.routes import ROUTES as TABLE
from tests.e2e.matrix_cells import CANNOT, CONFLICTS, HOW, ROUTES, STATUSES


def test_each_cell_has_a_way_or_a_reason() -> None:
    """For every route and status it is said how to get there or why nobody can, and never both."""
    cells = {(method, path, status) for method, path in ROUTES for status in STATUSES}
    assert set(HOW) | set(CANNOT) == cells
    assert set(HOW) & set(CANNOT) == set()


def test_conflicts_are_those_of_the_table() -> None:
    """What is said of conflicts speaks of routes that the table has, with that status."""
    assert set(CONFLICTS) == {(route.method, route.path) for route in TABLE if 409 in route.statuses}
