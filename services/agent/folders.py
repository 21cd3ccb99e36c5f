"""The folders of a run: `agent/work/<run id>/input`, which the run reads, and `output`, which it writes. All blocks.

`content`, where the MAP brings something along, is a link to what the node keeps of it.
"""

from pathlib import Path

from gurney.runtime.folder import remove_tree

_READ_ONLY = 0o555
_OWN = 0o755


class Work:
    """Where one run works."""

    def __init__(self, root: Path, run_id: str) -> None:
        self.folder = root / run_id
        self.input = self.folder / "input"
        self.output = self.folder / "output"
        self.content = self.folder / "content"
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

    def remove(self) -> None:
        remove_tree(self.folder)


def unseal(folder: Path) -> None:
    """Let files into a folder."""
    folder.chmod(_OWN)


def seal(folder: Path) -> None:
    """Make a folder read-only: its files are already."""
    for path in (folder, *(each for each in folder.rglob("*") if each.is_dir())):
        path.chmod(_READ_ONLY)


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(each.lstat().st_size for each in folder.rglob("*") if not each.is_dir())
