"""Writes the locks of compose/Dockerfile: of requirements.lock, with its hashes, what the image is made from.

`requirements.lock` there is what the services need at run time, `build.lock` what builds Gurney and the packages
without a wheel. The image's Python may be another than this one: what any of them needs is in. `--check` only compares.
"""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = ROOT / "compose"
PYTHONS = ("3.11", "3.12", "3.13")
#: The services run in containers of Linux.
LINUX = {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux", "implementation_name": "cpython"}
PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==")


def plain(name: str) -> str:
    """Return a distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def applies(needed: Requirement, extras: frozenset[str]) -> bool:
    """Return whether one of the Pythons needs it."""
    if needed.marker is None:
        return True
    environments: list[dict[str, str]] = [
        {**LINUX, "python_version": python, "python_full_version": f"{python}.0", "extra": extra}
        for python in PYTHONS
        for extra in ("", *extras)
    ]
    return any(needed.marker.evaluate(environment) for environment in environments)


def needed_by(requirements: list[str]) -> set[str]:
    """Return the names of all that some requirements need."""
    found: set[tuple[str, frozenset[str]]] = set()
    left = [(Requirement(text), frozenset[str]()) for text in requirements]
    while left:
        needed, extras = left.pop()
        step = (plain(needed.name), frozenset(needed.extras))
        if step in found or not applies(needed, extras):
            continue
        found.add(step)
        try:
            more = metadata.distribution(needed.name).requires or []
        except metadata.PackageNotFoundError:  # for another Python than this
            continue
        left += [(Requirement(text), step[1]) for text in more]
    return {name for name, _ in found}


def selected(lock: str, names: set[str]) -> str:
    """Return the blocks of a lock that pin some names."""
    kept: list[str] = []
    on = False
    for line in lock.splitlines(keepends=True):
        if match := PIN.match(line):
            on = plain(match["name"]) in names
        if on:
            kept.append(line)
    return "".join(kept)


def locks() -> dict[Path, str]:
    """Return what each lock should say."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    whole = (ROOT / "requirements.lock").read_text("utf-8")
    build = [*project["build-system"]["requires"], "setuptools"]
    return {
        COMPOSE / "requirements.lock": selected(whole, needed_by(project["project"]["dependencies"])),
        COMPOSE / "build.lock": selected(whole, needed_by(build)),
    }


def main() -> int:
    for lock, text in locks().items():
        if "--check" not in sys.argv[1:]:
            lock.write_text(text, "utf-8")
        elif not lock.is_file() or lock.read_text("utf-8") != text:
            sys.exit(f"{lock.relative_to(ROOT)} is not what requirements.lock says: run python -m scripts.image_lock")
    return 0


if __name__ == "__main__":
    sys.exit(main())
