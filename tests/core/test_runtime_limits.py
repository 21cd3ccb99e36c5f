"""When the supervisor looks at memory, and where it pins runs."""

import os

import pytest

from gurney.runtime.supervisor import memory, records
from gurney.runtime.supervisor.cores import Cores

GIB = 1 << 30


def test_look_comes_sooner_near_the_limit() -> None:
    """Far from the limit a look is rare, near it frequent, past it as frequent as can be."""
    pauses = [memory.pause(held, 8 * GIB, 0.0) for held in (0, 7 * GIB, 8 * GIB - 1, 9 * GIB)]
    assert pauses == sorted(pauses, reverse=True)
    assert pauses[0] > pauses[-1] > 0


def test_look_is_early_enough() -> None:
    """A run that fills 2 GiB a second cannot be far past its limit at the next look, unless looking itself is dear."""
    for held in range(0, 4 * GIB, GIB // 16):
        assert held + 2 * GIB * memory.pause(held, 4 * GIB, 0.0) <= 4 * GIB + 2 * GIB * 0.021


@pytest.mark.parametrize("limit", [0, GIB])
def test_looking_stays_cheap(limit: int) -> None:
    """Looking takes at most a twentieth of a core, however much there is to look at."""
    assert memory.pause(2 * GIB, limit, 0.05) >= 1.0


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Cores:
    """A machine of four processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    return Cores()


@pytest.mark.parametrize("cpu", [0.0, 0.5, 3.5, 4.0, 64.0])
def test_parts_and_wholes_are_not_pinned(cores: Cores, cpu: float) -> None:
    """Who asks for part of a processor, or for all, may use any."""
    assert cores.take(cpu) == []


def test_runs_spread_over_the_processors(cores: Cores) -> None:
    """The least used processors are taken, and given back ones are least used again."""
    assert cores.take(2.0) == [0, 1]
    assert cores.take(1.5) == [2, 3]
    assert cores.take(1.0) == [2]
    cores.release([0, 1], 2.0)
    assert cores.take(2.0) == [0, 1]


def test_adopted_runs_count(cores: Cores) -> None:
    """Processors of a run that another supervisor pinned count as used."""
    cores.hold([0, 1], 2.0)
    assert cores.take(1.0) == [2]


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "a/b", "a\0b"])
def test_folders_of_runs_stay_inside(name: str) -> None:
    """A run id that could lead out of the folder of the runs is no run id."""
    with pytest.raises(ValueError, match="not a run id"):
        records.folder(name)
