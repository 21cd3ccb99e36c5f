"""The copies of folder MAPs on a host: which go, which stay, and what a crash leaves."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gurney import clock
from gurney.runtime import folder
from gurney.runtime.copies import Copies
from gurney.runtime.folder import remove_tree


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A folder MAP."""
    made = tmp_path / "maps" / "app"
    (made / "models").mkdir(parents=True)
    (made / "app.json").write_text(json.dumps({"command": "true"}))
    (made / "models" / "weights").write_bytes(bytes(1000))
    return made


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    """The copies of a data folder."""
    made = Copies(tmp_path / "copies")
    made.open()
    return made


def test_an_idle_copy_goes_with_all_that_is_in_it(app: Path, copies: Copies, tmp_path: Path) -> None:
    """A copy that nobody has come for since then is removed, read-only as it is; one that is gone goes no more."""
    digest, _ = copies.pin(app)
    assert copies.digests() == [digest]
    assert copies.let_go(digest, clock.monotonic())
    assert list((tmp_path / "copies").iterdir()) == []
    assert not copies.has(digest)
    assert not copies.let_go(digest, clock.monotonic())


def test_copies_are_told_by_when_they_were_asked_for(copies: Copies, tmp_path: Path) -> None:
    """What was asked for last comes first; what nobody has asked for, last."""
    names = [f"{number:064x}" for number in range(4)]
    for name in names:
        (tmp_path / "copies" / name).mkdir()
    for number in (2, 0, 3):
        assert copies.has(f"sha256:{names[number]}")
    assert copies.digests() == [f"sha256:{names[number]}" for number in (3, 0, 2, 1)]


def by_run(copies: Copies, app: Path, digest: str) -> None:
    del app
    assert copies.has(digest)


def by_registration(copies: Copies, app: Path, digest: str) -> None:
    assert copies.pin(app)[0] == digest


@pytest.mark.parametrize("come", [by_run, by_registration])
def test_a_copy_that_somebody_came_for_stays(
    app: Path, copies: Copies, come: Callable[[Copies, Path, str], None]
) -> None:
    """Whoever comes after the copy was thought idle, a run or a registration, has it, and keeps it."""
    digest, _ = copies.pin(app)
    idle_since = clock.monotonic()
    come(copies, app, digest)
    assert not copies.let_go(digest, idle_since)
    assert (copies.path(digest) / "models" / "weights").stat().st_size == 1000


def test_who_comes_while_a_copy_goes_makes_it_anew(app: Path, copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registration that comes while the copy is being removed has one of its own, whole."""
    digest, _ = copies.pin(app)

    def remove(tree: Path) -> None:
        if tree.exists():
            assert copies.pin(app)[0] == digest
        remove_tree(tree)

    monkeypatch.setattr(folder, "remove_tree", remove)
    assert copies.let_go(digest, clock.monotonic())
    assert (copies.path(digest) / "models" / "weights").stat().st_size == 1000


def test_a_crash_leaves_no_half_of_a_copy(
    app: Path, copies: Copies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy whose removal was cut off is none any more; what is left of it goes at the next start."""
    digest, _ = copies.pin(app)

    def killed(tree: Path) -> None:
        if tree.exists():
            raise SystemError

    with monkeypatch.context() as crash:
        crash.setattr(folder, "remove_tree", killed)
        with pytest.raises(SystemError):
            copies.let_go(digest, clock.monotonic())
    again = Copies(tmp_path / "copies")
    assert again.digests() == []
    assert not again.has(digest)
    again.open()
    assert list((tmp_path / "copies").iterdir()) == []


def test_what_is_no_copy_is_nobodys_to_remove(app: Path) -> None:
    """Where the folder of local MAPs is that of the copies, what lies in it is not taken for a copy."""
    copies = Copies(app.parent)
    digest, _ = copies.pin(app)
    assert copies.digests() == [digest]
