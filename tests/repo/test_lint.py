"""The linters are tests, so that one run with one summary and one exit code tells everything."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINTERS = {
    "ruff-check": ["ruff", "check", "."],
    "ruff-format": ["ruff", "format", "--check", "."],
    "mypy": ["mypy"],
    "import-linter": ["lint-imports"],
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("linter", LINTERS)
def test_linter_is_content(linter: str) -> None:
    """Each linter, with the configuration of the repository, has nothing to say about it."""
    program, *arguments = LINTERS[linter]
    command = [str(Path(sys.executable).with_name(program)), *arguments]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(told.stdout, told.stderr, sep="")
    if told.returncode != 0:
        pytest.fail(f"{' '.join(LINTERS[linter])} is not content", pytrace=False)
