"""What a run leaves on disk: output, metadata, log, folders."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gurney.model.base import Reason
from gurney.runtime.folder import remove_tree
from services.agent import live_log, log, output
from services.agent.folders import Work, seal, unseal
from services.agent.output import Limits, look_through


def test_files_and_empty_folders_are_found(tmp_path: Path) -> None:
    """Every regular file is found by its path, and every folder that has nothing in it."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "c/d").mkdir(parents=True)
    (tmp_path / "a/b/ü").write_text("x")
    (tmp_path / "top").write_text("")
    found = look_through(tmp_path)
    assert (sorted(found.files), found.folders, found.fault) == (["a/b/ü", "top"], ["c/d/"], None)
    assert len(found) == 3


def test_an_output_folder_that_is_gone_is_empty(tmp_path: Path) -> None:
    """A run that removed its output folder wrote nothing; one that put a link there is at fault."""
    assert not look_through(tmp_path / "gone")
    assert look_through(tmp_path / "gone").fault is None
    (tmp_path / "link").symlink_to("/etc")
    assert not look_through(tmp_path / "link")
    assert look_through(tmp_path / "link").fault is not None


@pytest.mark.parametrize(
    "target", ["..", "/", "/etc/hostname", "../out-beside", "nothing", "self", "a/../../out-beside"]
)
def test_links_that_leave_or_lead_nowhere_are_faults(tmp_path: Path, target: str) -> None:
    """A link that does not end at something inside the output is a fault, and is not followed."""
    root = tmp_path / "out"
    (root / "a").mkdir(parents=True)
    (tmp_path / "out-beside").write_text("secret")
    (root / "self").symlink_to(target)
    found = look_through(root)
    assert found.fault is not None
    assert found.fault.startswith("self: the link")
    assert found.files == {}


def test_links_that_lead_round_in_a_circle_are_faults(tmp_path: Path) -> None:
    """Folders that lead to each other by links end the search, with a fault."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/to").symlink_to("../b")
    (tmp_path / "b/to").symlink_to("../a")
    (tmp_path / "b/f").write_text("x")
    found = look_through(tmp_path)
    assert found.fault is not None
    assert "circle" in found.fault
    assert {"b/f", "a/to/f"} <= set(found.files)


def test_what_is_too_large_is_left_behind(tmp_path: Path) -> None:
    """A file with which the output would be too large is a fault; what fits is found, and links count as files do."""
    (tmp_path / "a").write_text("12345")
    (tmp_path / "b").write_text("123456")
    assert look_through(tmp_path, Limits(bytes=11)).fault is None
    (tmp_path / "c").symlink_to("a")
    found = look_through(tmp_path, Limits(bytes=11))
    assert found.fault is not None
    assert "11 bytes" in found.fault
    assert sum(file.stat().st_size for file in found.files.values()) in {10, 11}


def test_a_flood_of_links_ends(tmp_path: Path) -> None:
    """Links that multiply what little there is are given up at a bound."""
    for level in range(20):
        (tmp_path / str(level)).mkdir()
        for name in "lr":
            (tmp_path / str(level) / name).symlink_to(f"../{level + 1}")
    (tmp_path / "20").mkdir()
    found = look_through(tmp_path, Limits(entries=1000))
    assert found.fault is not None
    assert "1000 entries" in found.fault


@pytest.mark.parametrize("name", [b"new\nline", b"not\xffutf8", b"x" * 255 + b"/" + b"y" * 255])
def test_names_that_no_payload_may_have_are_faults(tmp_path: Path, name: bytes) -> None:
    """A name that is no path of a payload is a fault that can be told; what else there is stays."""
    deep = os.fsencode(tmp_path) + b"/" + b"/".join([b"d" * 255] * 3) + b"/"
    target = deep + name if b"/" in name else os.fsencode(tmp_path) + b"/" + name
    os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
    Path(os.fsdecode(target)).write_text("")
    (tmp_path / "kept").write_text("")
    found = look_through(tmp_path)
    assert found.fault is not None
    assert found.fault.encode()
    assert "kept" in found.files


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_closed_files_and_folders_are_opened(tmp_path: Path) -> None:
    """What the run wrote and closed to everybody is read all the same: it is ours."""
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "f").write_text("x")
    (folder / "f").chmod(0)
    folder.chmod(0)
    found = look_through(tmp_path)
    assert found.files["d/f"].read_text() == "x"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, {"b": null}]}', {"a": [1, {"b": None}]}),
        ("[1]", None),
        ("{", None),
        ('{"a": NaN}', None),
        ('{"a": 1e400}', None),
        ('{"a": "\\ud800"}', None),
        ('{"a": "' + "x" * 70_000 + '"}', None),
        ("[" * 5000, None),
        ('{"a": ' + "[" * 40 + "]" * 40 + "}", None),
        ("\xff", None),
    ],
)
def test_metadata_is_an_object_of_bounded_size(tmp_path: Path, text: str, value: object) -> None:
    """`metadata.json` becomes the job's metadata where it is a JSON object that messages can carry."""
    (tmp_path / "metadata.json").write_bytes(text.encode("latin-1"))
    found = output.read_metadata(look_through(tmp_path))
    assert found == value
    assert json.dumps(found)


@pytest.mark.parametrize(
    "rest",
    [
        b'"dice": NaN',
        b'"a": 1e400',
        rb'"file": "\udcff"',
        b'"log": "' + b"x" * 100_000 + b'"',
        b'"a": ' + b"[" * 40 + b"]" * 40,
    ],
    ids=["nan", "infinity", "surrogate", "large", "deep"],
)
def test_a_failure_is_read_though_the_metadata_cannot_be_kept(tmp_path: Path, rest: bytes) -> None:
    """What an application says of its failure counts, whatever else stands beside it."""
    (tmp_path / "metadata.json").write_bytes(b'{"exception": "no lungs", ' + rest + b"}")
    found = look_through(tmp_path)
    assert (output.read_metadata(found), output.read_exception(found)) == (None, "no lungs")


@pytest.mark.parametrize(
    ("told", "text"),
    [('{"type": "E"}', '{"type": "E"}'), (r'"\udcff"', "?"), ("null", None), ('""', ""), ("[NaN]", "[NaN]")],
)
def test_a_failure_can_be_told_whatever_it_is(tmp_path: Path, told: str, text: str | None) -> None:
    """An object is told as its JSON, and text that is no Unicode as far as it goes."""
    (tmp_path / "metadata.json").write_text(f'{{"exception": {told}}}')
    found = output.read_exception(look_through(tmp_path))
    assert (found is None) == (text is None)
    assert Reason.decode(Reason.of("exception", found or "").encode()).message == (text or "")


def test_without_metadata_there_is_none(tmp_path: Path) -> None:
    """A run need not write metadata, nor an object."""
    assert output.read_metadata(look_through(tmp_path)) is None
    assert output.read_exception(look_through(tmp_path)) is None
    for text in ("[1]", "{", "[" * 5000, '{"a": 1}'):
        (tmp_path / "metadata.json").write_text(text)
        assert output.read_exception(look_through(tmp_path)) is None


# --- the log ---


def test_no_log_and_an_empty_log_are_nothing(tmp_path: Path) -> None:
    """A log that is missing or empty is not kept."""
    (tmp_path / "log").touch()
    assert log.look_at(tmp_path / "gone", tmp_path / "draft") == log.Log()
    assert log.look_at(tmp_path / "log", tmp_path / "draft") == log.Log()


def test_a_short_log_is_kept_as_it_is(tmp_path: Path) -> None:
    """A log within the bound is kept from where it lies."""
    (tmp_path / "log").write_bytes(b"one\r\ntwo\xff\n\nthree")
    found = log.look_at(tmp_path / "log", tmp_path / "draft")
    assert found == log.Log(tmp_path / "log", ("one", "two�", "", "three"))


@given(st.binary(max_size=3 * log.TAIL_BYTES), st.booleans())
def test_last_lines_are_bounded(data: bytes, cut: bool) -> None:  # noqa: FBT001
    """The tail has at most 100 lines and 16 KiB, whatever bytes the log has."""
    lines = log.last_lines(data[-log.TAIL_BYTES :], cut=cut)
    assert len(lines) <= log.TAIL_LINES
    assert sum(len(line.encode()) + 1 for line in lines) <= log.TAIL_BYTES + 1
    assert not any("\n" in line for line in lines)


def test_bytes_that_are_no_text_are_counted_as_they_are_told() -> None:
    """What stands for bytes that are no UTF-8 is longer than they are, and the tail is bounded all the same."""
    lines = log.last_lines((b"\xff" * 150 + b"\n") * 100, cut=False)
    assert 16_000 < sum(len(line.encode()) + 1 for line in lines) <= log.TAIL_BYTES


def test_one_endless_line_has_an_end() -> None:
    """Of a log without line breaks the tail is its end."""
    (line,) = log.last_lines(b"x" * 20_000 + b"end", cut=True)
    assert line.endswith("xend")


# --- the live log ---


@given(st.text(max_size=300), st.integers(1, 40))
def test_no_character_is_cut_in_two(text: str, size: int) -> None:
    """Pieces of valid UTF-8 are valid, in order and whole, wherever a message would end."""
    data = text.encode(errors="ignore")
    original, live_log.CHUNK = live_log.CHUNK, size + 4
    try:
        pieces = list(live_log.chunks(7, data))
    finally:
        live_log.CHUNK = original
    assert "".join(piece.decode() for _, piece in pieces).encode() == data
    at = 7
    for offset, piece in pieces:
        assert offset == at
        at += len(piece)


@given(st.binary(min_size=1, max_size=50))
def test_broken_characters_are_not_waited_for(data: bytes) -> None:
    """Of any bytes at most the last three are held back, for what may become a character."""
    assert len(data) - 3 <= live_log.whole(data) <= len(data)


def test_half_a_character_waits_for_the_other_half(tmp_path: Path) -> None:
    """A character whose bytes are not all written yet is sent when they are, or when the run has ended."""
    path = tmp_path / "log"
    path.write_bytes("aü".encode()[:2])
    tail = live_log._Tail(path, 0)
    assert live_log._read_new(tail, last=False) == (0, b"a")
    path.write_bytes("aü".encode())
    assert live_log._read_new(tail, last=False) == (1, "ü".encode())
    path.write_bytes("aüü".encode()[:4])
    assert live_log._read_new(tail, last=True) == (3, "ü".encode()[:1])


def test_a_log_that_was_begun_before_us_is_taken_up_near_its_end(tmp_path: Path) -> None:
    """After a restart of the agent the last part of the log is sent once more, and then what is new."""
    path = tmp_path / "log"
    path.write_bytes(b"x" * (live_log.KEPT + 10))
    tail = live_log._Tail(path, None)
    assert live_log._read_new(tail, last=False) == (10, b"x" * live_log.KEPT)
    assert live_log._read_new(tail, last=False) == (live_log.KEPT + 10, b"")


# --- folders ---


def test_work_folders_are_made_and_removed(tmp_path: Path) -> None:
    """The input can be filled and sealed; making the folders again forgets what was in them; closed ones go, too."""
    work = Work(tmp_path, "run")
    work.make()
    unseal(work.input)
    (work.input / "d").mkdir()
    (work.input / "d/f").write_text("x")
    seal(work.input)
    assert [path.stat().st_mode & 0o777 for path in (work.input, work.input / "d")] == [0o555, 0o555]
    (work.output / "x").mkdir(0)
    work.make()
    assert list(work.input.iterdir()) == list(work.output.iterdir()) == []
    (work.output / "x/y").mkdir(parents=True)
    (work.output / "x").chmod(0)
    work.remove()
    assert list(tmp_path.iterdir()) == []
    work.remove()


def test_folders_that_nest_without_end_are_removed(tmp_path: Path) -> None:
    """What an application leaves is removed however deep it is, closed folders on the way and files in them, too."""
    tree = tmp_path / "tree"
    tree.mkdir()
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(tree)
        for number in range(3000):
            Path("f").touch()
            Path("d").mkdir()
            os.chdir("d")
            if number % 7 == 0:
                Path("../d").chmod(0o300)
        os.fchdir(before)
        remove_tree(tree)
    finally:
        os.fchdir(before)
        os.close(before)
    assert list(tmp_path.iterdir()) == []


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    """Removing a tree leaves alone what its links lead to."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/f").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/l").symlink_to("../kept")
    remove_tree(tmp_path / "tree")
    (tmp_path / "l").symlink_to("kept")
    remove_tree(tmp_path / "l")
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "f"]
