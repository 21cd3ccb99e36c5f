"""Folder MAPs of the end-to-end tests. What `shell` and `python` do is a file of their input: the test shows it."""

import json
from pathlib import Path

from gurney.testing.folder_maps import make_map

SHELL = 'exec /bin/sh "$HOLOSCAN_INPUT_PATH/run.sh"'
PYTHON = 'exec python "$HOLOSCAN_INPUT_PATH/run.py"'


def make_maps(maps: Path) -> Path:
    """Write all of them."""
    make_map(maps, "shell", ["/bin/sh", "-c", SHELL])
    make_map(maps, "python", ["/bin/sh", "-c", PYTHON], resources={"cpu": 0.01, "memory": "64Mi"})
    make_map(maps, "noop", ["true"])
    make_map(maps, "brief", ["/bin/sh", "-c", SHELL], timeout=0.3)
    make_map(maps, "nowhere", ["no-such-program"])
    make_map(maps, "not-executable", ["./app.json"])
    make_map(maps, "half", ["/bin/sh", "-c", SHELL], resources={"cpu": 1.5, "memory": "16Mi"})
    make_map(maps, "giant", ["true"], resources={"cpu": 1000, "memory": "16Mi"})
    _broken(maps)
    return maps


def _broken(maps: Path) -> None:
    """Write MAPs that become `invalid`."""
    (maps / "no-manifest").mkdir()
    (maps / "no-manifest" / "readme").write_text("nothing here")
    make_map(maps, "broken-manifest", ["true"])
    (maps / "broken-manifest" / "app.json").write_text("{")
    make_map(maps, "no-command", [])
    app = json.loads((maps / "no-command" / "app.json").read_text())
    (maps / "no-command" / "app.json").write_text(json.dumps(app | {"command": ""}))
