"""Whether a disk has been full, as the agent remembers it."""

import asyncio
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from gurney import clock
from services.agent.disk import LEAST_FREE, Disk


class Room(NamedTuple):
    free: int


async def test_a_disk_that_was_full_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run during which the disk was seen full is told so, also when there is room at its end; no later one."""
    free = [LEAST_FREE]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Room(free[-1]))
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
