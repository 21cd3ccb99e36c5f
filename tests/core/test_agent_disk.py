"""Whether a disk has been full, as the agent remembers it."""

import asyncio
import os
from pathlib import Path
from typing import NamedTuple

import pytest

from gurney import clock
from services.agent.disk import LEAST_FILES, LEAST_FREE, Disk


class Room(NamedTuple):
    f_bavail: int
    f_frsize: int = 1
    #: Not counted, as by some file systems.
    f_files: int = 0
    f_favail: int = 0


async def test_a_disk_that_was_full_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run during which the disk was seen full is told so, also when there is room at its end; no later one."""
    free = [LEAST_FREE]
    monkeypatch.setattr(os, "statvfs", lambda _: Room(free[-1]))
    watched = Disk(tmp_path)
    began = clock.monotonic()
    await asyncio.to_thread(watched.look)
    assert not watched.was_full_since(began)
    free.append(LEAST_FREE - 1)
    await asyncio.to_thread(watched.look)
    free.append(LEAST_FREE)
    await asyncio.to_thread(watched.look)
    assert watched.was_full_since(began)
    later = clock.monotonic()
    await watched.look_again()
    assert not watched.was_full_since(later)
    free.append(LEAST_FREE - 1)
    await watched.look_again()
    assert watched.was_full_since(later)


@pytest.mark.parametrize(("files", "is_full"), [(LEAST_FILES, False), (LEAST_FILES - 1, True)])
async def test_a_disk_that_takes_no_more_files_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, *, is_full: bool
) -> None:
    """An application cannot write there either, however much room there is for bytes."""
    monkeypatch.setattr(os, "statvfs", lambda _: Room(LEAST_FREE, f_files=1_000_000, f_favail=files))
    watched = Disk(tmp_path)
    began = clock.monotonic()
    await asyncio.to_thread(watched.look)
    assert watched.was_full_since(began) is is_full
