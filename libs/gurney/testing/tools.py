"""The real servers that `scripts/tools` provides."""

import os
import shutil
from pathlib import Path


def folder() -> Path:
    """Return the folder of the programs; `GURNEY_TOOLS` names another cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GURNEY_TOOLS") or Path(cache, "gurney", "tools")) / "bin"


def tool(name: str) -> Path | None:
    """Return a program that `scripts/tools` has provided, or else one on PATH."""
    found = shutil.which(name, path=f"{folder()}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    return Path(found) if found else None


def provided(name: str) -> Path:
    """Return the program as `tool` does; raises `FileNotFoundError` where there is none."""
    found = tool(name)
    if found is None:
        raise FileNotFoundError(
            f"{name}: scripts/tools {name}, or the distribution's package of that name, provides it"
        )
    return found
