"""The folders of a run: `agent/work/<run id>/input`, which the run reads, and `output`, which it writes. All blocks."""

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
