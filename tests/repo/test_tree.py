"""Habits that hold over all tracked files."""

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULE_LINES = 500
FUNCTION_LINES = 60

#: What a file must not name: hosts of package indexes (a site has its own), and folders of one machine.
FORBIDDEN = re.compile(
    r"pypi\.(org|python)|pythonhosted\.|registry\.npmjs|proxy\.golang|(--|PIP_)(extra.)?index.url"
    r"|(?<![\w.~])/(work|farm)\b",
    re.IGNORECASE,
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def tracked() -> list[Path]:
    """Return the files that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in sorted(set(names)) if name and (ROOT / name).is_file()]


def sources(*folders: str) -> list[Path]:
    """Return the Python files below folders of the repository."""
    return [file for file in tracked() if file.suffix == ".py" and file.relative_to(ROOT).parts[0] in folders]


def functions(file: Path) -> Iterator[Function]:
    """Yield every function and method of a file."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, Function):
            yield node


def place(file: Path, line: int) -> str:
    """Return how a finding names its place."""
    return f"{file.relative_to(ROOT)}:{line}"


def test_no_file_names_an_index_host_or_a_foreign_path() -> None:
    """No file names the host of a package index or a folder of the machine that it was written on."""
    found = []
    for file in tracked():
        for number, line in enumerate(file.read_bytes().decode("utf-8", "replace").splitlines(), 1):
            if match := FORBIDDEN.search(line):
                found.append(f"{place(file, number)}: {match[0]}")
    assert found == []


@pytest.mark.parametrize(
    "broken", ["pypi_.org", "files.pythonhosted_.org", "pip --index_-url x", "cd /wo_rk/x", "'/fa_rm'"]
)
def test_forbidden_names_are_seen(broken: str) -> None:
    """The pattern finds each name that it is for, once the gap is closed that hides it from the test above."""
    assert not FORBIDDEN.search(broken)
    assert FORBIDDEN.search(broken.replace("_", ""))


def test_modules_are_short() -> None:
    """No module of the library or a service has more lines than one can keep in mind."""
    lengths = {file: len(file.read_text("utf-8").splitlines()) for file in sources("libs", "services")}
    assert [f"{place(file, 1)}: {length} lines" for file, length in lengths.items() if length >= MODULE_LINES] == []


def test_functions_are_short() -> None:
    """No function of the library or a service is longer than a screen."""
    found = []
    for file in sources("libs", "services"):
        for function in functions(file):
            length = (function.end_lineno or function.lineno) - function.lineno + 1
            if length >= FUNCTION_LINES:
                found.append(f"{place(file, function.lineno)}: {function.name} has {length} lines")
    assert found == []


def test_every_test_says_what_is_true() -> None:
    """Every test function has a docstring of one paragraph that ends as a sentence does."""
    found = []
    for file in sources("tests"):
        if not file.name.startswith("test_"):
            continue
        for function in functions(file):
            told = (ast.get_docstring(function) or "").strip()
            if function.name.startswith("test_") and (not told.endswith(".") or "\n\n" in told):
                found.append(f"{place(file, function.lineno)}: {function.name}")
    assert found == []


def test_scripts_can_be_run() -> None:
    """The scripts that people and CI call are executable, and bash can read them."""
    for name in ("scripts/setup", "scripts/demo", "scripts/test", ".ci/run", "scripts/lib.sh"):
        subprocess.run(["bash", "-n", ROOT / name], check=True)
        assert name.endswith(".sh") or os.access(ROOT / name, os.X_OK), name
