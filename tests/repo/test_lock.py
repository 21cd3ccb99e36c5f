"""The lock pins every distribution by version and hash, and goes with `pyproject.toml`."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()


def entries() -> list[str]:
    """Return the entries of the lock, each as one line."""
    return [entry for entry in LOCK.replace("\\\n", " ").splitlines() if entry.strip()]


def pins() -> dict[str, list[Requirement]]:
    """Return what the lock pins by name; a name has several pins where markers tell platforms apart."""
    found: dict[str, list[Requirement]] = {}
    for entry in entries():
        requirement = Requirement(entry.partition("--hash")[0].strip())
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def wanted() -> list[Requirement]:
    """Return every requirement that `pyproject.toml` states."""
    groups = [
        PROJECT["build-system"]["requires"],
        PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"].values(),
        *PROJECT["dependency-groups"].values(),
    ]
    return [Requirement(text) for group in groups for text in group]


def test_lock_has_a_hash_for_everything() -> None:
    """Every entry pins one version and has SHA-256 hashes and no others."""
    shape = re.compile(r"^[a-z0-9][a-z0-9.-]*==\S+( ; [^#]*?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*$")
    assert [entry[:80] for entry in entries() if not shape.match(entry)] == []
    assert len(entries()) > 50


def test_lock_names_no_place() -> None:
    """The lock says what is installed, never from where."""
    assert [line for line in LOCK.splitlines() if "://" in line or " @ " in line or line.startswith("-")] == []


def test_lock_goes_with_the_project() -> None:
    """Every requirement of the project is pinned, at a version that it allows."""
    pinned = pins()
    missing = []
    for requirement in wanted():
        versions = [next(iter(pin.specifier)).version for pin in pinned.get(canonicalize_name(requirement.name), [])]
        if not versions or not all(requirement.specifier.contains(version) for version in versions):
            missing.append(f"{requirement}: locked {versions or 'not at all'}")
    assert missing == []


def test_sources_without_a_wheel_can_be_built() -> None:
    """What set-up builds from source is locked, and so is the tool that builds it."""
    named = re.search(r'^WITHOUT_WHEEL="(.*)"$', (ROOT / "scripts" / "lib.sh").read_text(), re.MULTILINE)
    assert named is not None
    assert {"setuptools", *named[1].split(",")} <= set(pins())
