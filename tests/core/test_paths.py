"""Which paths and names are allowed."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gurney.errors import Invalid
from gurney.paths import MAX_NAME, MAX_PATH_BYTES, check_name, check_path, folders_of, is_folder

SEGMENT = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/"), min_size=1, max_size=40
).filter(lambda segment: segment not in {".", ".."} and len(segment.encode()) <= 255)
PATH = st.lists(SEGMENT, min_size=1, max_size=6).map("/".join)


def refused(path: str) -> str:
    with pytest.raises(Invalid) as caught:
        check_path(path)
    assert caught.value.errors[0].field == "path"
    return caught.value.errors[0].message


@given(PATH, st.sampled_from(["", "/"]))
@example("a\\b", "")
@example("cafe\u0301/caf\u00e9", "")
@example("..a/b..", "/")
def test_good_paths_are_kept_as_they_are(path: str, end: str) -> None:
    """A path of ordinary parts is returned unchanged, composed or not, and one that ends in / is a folder."""
    assert check_path(path + end) == path + end
    assert is_folder(path + end) == (end == "/")


@given(PATH, PATH, st.sampled_from(["//", "/./", "/../"]))
def test_bad_parts_are_refused(before: str, after: str, part: str) -> None:
    """Empty parts, . and .. are refused wherever they stand."""
    assert "part" in refused(before + part + after)


@pytest.mark.parametrize("path", [".", "..", "./", "../", "./a", "../a", "a/.", "a/..", "a//", "a/./", "a/../"])
def test_bad_parts_are_refused_at_the_ends(path: str) -> None:
    """Empty parts, . and .. are refused at the beginning and at the end too."""
    assert "part" in refused(path)


@given(PATH)
def test_absolute_paths_are_refused(path: str) -> None:
    """What begins with / is not relative."""
    assert "relative" in refused(f"/{path}")


@given(PATH, st.characters(categories=["Cc"]), st.data())
def test_control_characters_are_refused(path: str, control: str, data: st.DataObject) -> None:
    """NUL, line feed and their like are refused wherever they stand."""
    at = data.draw(st.integers(0, len(path)))
    assert "control" in refused(path[:at] + control + path[at:])


@given(st.characters(categories=["Cs"]))
def test_what_is_no_utf_8_is_refused(surrogate: str) -> None:
    """Bytes that are not UTF-8 come as surrogates, and are refused."""
    assert "UTF-8" in refused(f"a{surrogate}")


def test_lengths_are_of_bytes() -> None:
    """The limit of a path is 1,024 bytes and of a part 255, and the error names it."""
    path = "/".join(["ä" * 100] * 5)
    assert len(check_path(path + "a" * (MAX_PATH_BYTES - len(path.encode()) - 1) + "/").encode()) == MAX_PATH_BYTES
    assert "1025 bytes, at most 1024" in refused("a/" * 512 + "a")
    assert "1200 bytes, at most 1024" in refused("ä/" * 400)
    assert check_path("ä" * 127 + "a/b")
    assert "256 bytes, at most 255" in refused("ä" * 128 + "/b")
    assert "empty" in refused("")
    assert "relative" in refused("/")


@given(PATH)
def test_folders_of_a_path(path: str) -> None:
    """The folders above a path are its beginnings that end in /, and not itself."""
    assert list(folders_of(path)) == [path[: i + 1] for i, character in enumerate(path) if character == "/"]
    assert list(folders_of(f"{path}/")) == list(folders_of(path))


@given(st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="/"), min_size=1, max_size=MAX_NAME))
@example("a b")
@example("e\u0301" * MAX_NAME)
def test_good_names_come_back_composed(name: str) -> None:
    """A name of printable characters comes back in NFC, and checking it again changes nothing."""
    composed = unicodedata.normalize("NFC", name)
    if name in {".", ".."} or len(composed) > MAX_NAME:
        return
    assert check_name(name) == composed
    assert check_name(composed) == composed


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "1 to 128"),
        ("a" * 129, "129 characters, 1 to 128"),
        ("a/b", "/"),
        ("a\nb", "printable"),
        ("a\u200bb", "printable"),
        ("\ud800", "printable"),
        (".", "no URL"),
        ("..", "no URL"),
        ("map_x", "as an id"),
        ("job_01k7zzzzzzzzzzzzzzzzzzzzzz", "as an id"),
    ],
)
def test_bad_names_are_refused(name: str, why: str) -> None:
    """A bad name is refused with the rule, under the field that was asked about."""
    with pytest.raises(Invalid, match=why) as caught:
        check_name(name, "label")
    assert caught.value.errors[0].field == "label"
