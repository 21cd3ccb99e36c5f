"""The folders of a run: `agent/work/<run id>/input`, which the run reads, and `output`, which it writes. All blocks."""

import shutil
import stat
from contextlib import suppress
from pathlib import Path

_READ_ONLY = 0o555
_OWN = 0o755


class Work:
    """Where one run works."""

    def __init__(self, root: Path, run_id: str) -> None:
        self.folder = root / run_id
        self.input = self.folder / "input"
        self.output = self.folder / "output"
        #: What is kept of a log that is too long to be kept whole.
        self.log = self.folder / "log"

    def make(self) -> None:
        """Make the folders anew; an input without files is ready then."""
        try:
            self.folder.mkdir()
        except FileExistsError:
            remove_tree(self.folder)
            self.folder.mkdir(parents=True)
        self.input.mkdir(_READ_ONLY)
        self.output.mkdir()

    def unseal(self) -> None:
        """Let files into the input."""
        self.input.chmod(_OWN)

    def seal(self) -> None:
        """Make the input read-only: its files are already."""
        for path in (self.input, *(each for each in self.input.rglob("*") if each.is_dir())):
            path.chmod(_READ_ONLY)

    def remove(self) -> None:
        remove_tree(self.folder)


def remove_tree(root: Path) -> None:
    """Remove a tree whose folders may be closed to us; a missing one is no error."""
    if root.is_symlink() or not root.is_dir():
        root.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(root)
    except OSError:
        _unlock(root)
        shutil.rmtree(root, ignore_errors=True)


def _unlock(root: Path) -> None:
    """Open every folder of the tree, each before it is looked into."""
    folders = [root]
    while folders:
        folder = folders.pop()
        with suppress(OSError):
            folder.chmod(stat.S_IRWXU)
            folders += [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
