"""Folder MAPs made of a few lines, for tests and benchmarks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def make_map(
    maps: Path,
    name: str,
    command: Sequence[str],
    *,
    files: dict[str, str] | None = None,
    resources: dict[str, Any] | None = None,
    timeout: float = 0,
) -> str:
    """Write a folder MAP of the Holoscan generation and return its URN."""
    folder = maps / name
    folder.mkdir(parents=True)
    app = {
        "apiVersion": "1.0.0",
        "command": json.dumps(list(command)),
        "environment": {"HOLOSCAN_INPUT_PATH": "input/", "HOLOSCAN_OUTPUT_PATH": "output/"},
        "input": {"path": "input/", "formats": None},
        "output": {"path": "output/", "formats": None},
        "timeout": timeout,
        "version": "1.0.0",
        "workingDirectory": "/var/holoscan",
    }
    pkg = {"apiVersion": "1.0.0", "models": {}, "resources": resources or {"cpu": 0.01, "memory": "16Mi"}}
    (folder / "app.json").write_text(json.dumps(app))
    (folder / "pkg.json").write_text(json.dumps(pkg))
    for path, text in (files or {}).items():
        (folder / path).write_text(text)
    return f"urn:gurney:dir:{name}"
