"""The copies of folder MAPs that a host keeps, until somebody lets go of them. All blocks.

A copy that goes is renamed first, so that a crash leaves it whole or not there, and rubbish for the next start.
"""

import re
import threading
from pathlib import Path

from gurney import clock
from gurney.runtime import folder

_SCHEME = "sha256:"
#: What has another name is not ours to remove.
_NAME = re.compile(r"[0-9a-f]{64}")
_NEVER = float("-inf")


class Copies:
    """Those of one data folder. Nobody else lets go of any."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        #: When somebody last asked for each, by the monotonic clock.
        self._asked: dict[str, float] = {}

    def open(self) -> None:
        """Make their folder; what a crash left half-way goes."""
        self._root.mkdir(exist_ok=True)
        folder.clear_temporaries(self._root)

    def path(self, digest: str) -> Path:
        return folder.copy_path(self._root, digest)

    def has(self, digest: str) -> bool:
        """Tell whether there is a copy, to somebody who needs it: who has thought it idle before lets it be."""
        return self._is_there(self.path(digest))

    def pin(self, source: Path) -> tuple[str, dict[str, bytes]]:
        """As `folder.pin`; who asks needs the copy."""
        return folder.pin(source, self._root, self._is_there)

    def digests(self) -> list[str]:
        """Return what there is, what somebody asked for last first."""
        names = [each.name for each in self._root.iterdir() if _NAME.fullmatch(each.name)]
        return [_SCHEME + name for name in sorted(names, key=lambda name: -self._asked.get(name, _NEVER))]

    def let_go(self, digest: str, idle_since: float) -> bool:
        """Remove a copy that nobody has asked for since, by the monotonic clock; tell whether it went."""
        copy = self.path(digest)
        aside = folder.aside(copy)
        folder.remove_tree(aside)
        with self._lock:
            if self._asked.get(copy.name, _NEVER) >= idle_since:
                return False
            if not copy.is_dir():
                return False
            copy.rename(aside)
            self._asked.pop(copy.name, None)
        folder.sync(self._root)  # or a power cut could leave the copy in its place, and half of it
        folder.remove_tree(aside)
        return True

    def _is_there(self, copy: Path) -> bool:
        with self._lock:  # who is told that there is none makes one, and asked before that
            self._asked[copy.name] = clock.monotonic()
            return copy.is_dir()
