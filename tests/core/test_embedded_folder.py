"""The data folder of the embedded server."""

from pathlib import Path

import pytest

from gurney.errors import AlreadyRunning, Invalid
from services.embedded.folder import DataFolder


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """A folder with files of others is refused, and neither its mode nor its files change."""
    (tmp_path / "thesis.txt").write_text("")
    tmp_path.chmod(0o755)
    with pytest.raises(Invalid, match="not of a Gurney server"), DataFolder(tmp_path).locked():
        pass
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_new_folder_is_closed_to_others_and_held_by_one(tmp_path: Path) -> None:
    """A folder that is made is only its owner's; while it is held, a second holder is told by whom; then it is free."""
    folder = DataFolder(tmp_path / "data")
    with folder.locked():
        assert folder.root.stat().st_mode & 0o777 == 0o700
        with pytest.raises(AlreadyRunning, match="process"), DataFolder(folder.root).locked():
            pass
    with folder.locked():
        pass


def test_a_secret_stays_and_is_only_its_owner_s(tmp_path: Path) -> None:
    """The same secret comes at each call, from a file of mode 0600."""
    folder = DataFolder(tmp_path / "data")
    with folder.locked():
        first = folder.secret("token", "gurney_")
        assert first.startswith("gurney_")
        assert folder.secret("token", "gurney_") == first
        assert (folder.root / "token").stat().st_mode & 0o777 == 0o600
