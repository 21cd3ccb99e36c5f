"""A rule that nobody has seen catch something is a wish: each is broken once, in a copy, and must say so."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
CONTRACTS = [contract["name"] for contract in TOOLS["importlinter"]["contracts"]]
BANNED = list(TOOLS["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"])

#: Contract -> the files that break it: path in the copy -> a line that is added to it.
SEEDS = {
    "gurney knows no service": {"services/job/__init__.py": "", "libs/gurney/clock.py": "import services.job"},
    "services do not know each other": {
        "services/map/seed.py": "",
        "services/job/seed.py": "import services.map.seed",
    },
    "handlers over effects and repository over machine and policy": {
        "services/job/handlers.py": "",
        "services/job/machine.py": "import services.job.handlers",
    },
    "cores decide and do nothing else": {"services/job/machine.py": "import asyncio"},
    "no cycles": {
        "services/job/seed_a.py": "import services.job.seed_b",
        "services/job/seed_b.py": "import services.job.seed_a",
    },
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the sources and their configuration."""
    for folder in ("libs", "services"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    # As a regular package the copy hides the original, which a namespace package would be merged with.
    (tmp_path / "services" / "__init__.py").touch()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(copy: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a tool of this environment over the copy."""
    environment = os.environ | {"PYTHONPATH": f"{copy / 'libs'}{os.pathsep}{copy}"}
    command = [str(Path(sys.executable).with_name(program)), *arguments]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("contract", CONTRACTS)
def test_contract_catches_a_violation(copy: Path, contract: str) -> None:
    """Each contract of import-linter, and no other reason, breaks the build once a line against it is there."""
    for path, line in SEEDS[contract].items():
        file = copy / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as seeded:
            seeded.write(f"\n{line}\n")
    told = run(copy, "lint-imports", "--no-cache")
    assert told.returncode == 1, told.stdout + told.stderr
    assert f"{contract} BROKEN" in " ".join(told.stdout.split())


def test_banned_calls_are_caught(copy: Path) -> None:
    """Each banned call is found outside the two modules that may make it."""
    lines = []
    for api in BANNED:
        package, _, call = api.partition(".")
        lines += [f"import {package}", f"{package}.{call}()"]
    seed = copy / "services" / "seed.py"
    seed.write_text("\n".join(lines) + "\n")
    told = run(copy, "ruff", "check", "--no-cache", "--select", "TID251", "--output-format", "concise", str(seed))
    assert [api for api in BANNED if f"`{api}`" not in told.stdout] == [], told.stdout + told.stderr
