"""What is logged: errors as they are, so that the level decides what is told of them."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEVELS = {"debug", "info", "warning", "error", "exception"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Give each call of a logger, with where it is."""
    for folder in ("libs", "services"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Call(func=ast.Attribute(value=ast.Name(id="_log"), attr=level)) if level in LEVELS:
                        yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def makes_text(value: ast.expr) -> bool:
    """Tell whether a value is put together from another one's text: from an error's, as a rule."""
    called = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in {"str", "repr"}
    return called or isinstance(value, ast.JoinedStr)


def test_no_log_line_is_made_of_texts() -> None:
    """Events are fixed texts, and no value of a line is `str(error)`, `repr(error)` or an f-string."""
    # `error=error` leaves it to the level: the default one tells kind and code, as a text may quote a patient's name.
    faults = [where for where, call in calls() if not isinstance(call.args[0], ast.Constant)]
    faults += [f"{where} {each.arg}" for where, call in calls() for each in call.keywords if makes_text(each.value)]
    assert not faults, faults


def test_calls_are_found() -> None:
    """The test above looks at something."""
    assert len(list(calls())) > 50
