"""How logs of containers are written: at their offsets, the middle of a long one a hole."""

import gc
import socket
from pathlib import Path

import pytest

from gurney.runtime import holes
from gurney.runtime.docker.logs import LogFile, LogPump
from gurney.runtime.docker.runtime import DockerRuntime

KIB = 1024


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends that are kept are 64 KiB."""
    monkeypatch.setattr(holes, "HEAD", 64 * KIB)
    monkeypatch.setattr(holes, "TAIL", 64 * KIB)
    monkeypatch.setattr(holes, "_STEP", 16 * KIB)


@pytest.mark.usefixtures("small")
def test_long_log_costs_its_ends(tmp_path: Path) -> None:
    """A log that is longer than what is kept takes the disk of what is kept; both ends are at their offsets."""
    path = tmp_path / "log"
    file = LogFile(path)
    lines = [b"%07d\n" % number for number in range(512 * KIB)]
    for start in range(0, len(lines), KIB):
        file.write(b"".join(lines[start : start + KIB]))
    file.close()
    whole, written = b"".join(lines), path.read_bytes()
    assert len(written) == len(whole)
    assert written[: 64 * KIB] == whole[: 64 * KIB]
    assert written[-64 * KIB :] == whole[-64 * KIB :]
    assert path.stat().st_blocks * 512 <= (64 + 64 + 16 + 16) * KIB


@pytest.mark.usefixtures("small")
def test_log_that_is_kept_has_no_hole(tmp_path: Path) -> None:
    """A log that is kept whole is whole."""
    path = tmp_path / "log"
    file = LogFile(path)
    for _ in range(128):
        file.write(b"x" * KIB)
    file.close()
    assert path.read_bytes() == b"x" * 128 * KIB


def test_full_disk_stops_nobody(tmp_path: Path) -> None:
    """What cannot be written is left out, and the log says that it lacks something."""
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    file = LogFile(path)
    file.write(b"x")
    file.close()
    assert not file.is_whole


def test_many_at_once(tmp_path: Path) -> None:
    """One thread follows many, each to its own file; whoever ends has his all written."""
    pump = LogPump()
    pump.open()
    ours, theirs = zip(*(socket.socketpair() for _ in range(20)), strict=True)
    ended = [pump.follow(theirs[i], tmp_path / str(i)) for i in range(20)]
    for i, connection in enumerate(ours):
        text = f"run {i}\n".encode()
        connection.sendall(b"\x01\0\0\0" + len(text).to_bytes(4, "big") + text)
        connection.close()
    assert all(each.result(10) for each in ended)
    assert [(tmp_path / str(i)).read_text() for i in range(20)] == [f"run {i}\n" for i in range(20)]
    pump.close()


def test_nobody_who_waits_stops_the_writing(tmp_path: Path) -> None:
    """Who gives up waiting for the end of one log does no harm to it, and none to the others."""
    pump = LogPump()
    pump.open()
    here, there = socket.socketpair()
    ended = pump.follow(there, tmp_path / "log")
    assert not ended.cancel()
    here.close()
    assert ended.result(10)
    pump.close()


def test_closing_ends_what_is_followed(tmp_path: Path) -> None:
    """When the pump closes, what it follows is let go, what has come is in the file."""
    pump = LogPump()
    pump.open()
    here, there = socket.socketpair()
    ended = pump.follow(there, tmp_path / "log")
    pump.close()
    assert ended.result(10)
    here.close()
    there.close()


def test_nothing_is_followed_after_the_closing(tmp_path: Path) -> None:
    """What is to be followed when the pump is closed already is closed, and its log counts as not whole."""
    pump = LogPump()
    pump.open()
    pump.close()
    here, there = socket.socketpair()
    assert pump.follow(there, tmp_path / "log").result(10) is False
    assert there.fileno() == -1
    here.close()


def test_what_is_never_opened_holds_nothing(tmp_path: Path) -> None:
    """A runtime that is made and never opened leaves no socket behind."""
    DockerRuntime(tmp_path, node="n1", url=f"unix://{tmp_path}/docker.sock")
    gc.collect()  # a socket that nobody closed would fail the test
