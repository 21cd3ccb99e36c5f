"""What a run uses of its GPUs, out of what is seen of them."""

from collections.abc import Mapping

import pytest

from gurney.model.resources import Gpu
from services.agent.gpu_readings import Device
from services.agent.gpu_use import Held, Tally, Used, used

MINE, THEIRS = 10, 20


def held(
    processes: Mapping[int, int | None],
    *,
    used_bytes: int = 1000,
    others: int = 0,
    alone: bool = True,
    busy: float | None = 0.5,
    busy_by: Mapping[int, float] | None = None,
) -> Held:
    gpu = Gpu(uuid="GPU-1", model="A", memory=10_000, used=used_bytes)
    return Held(Device(gpu, processes, busy, busy_by), others, alone)


@pytest.mark.parametrize(
    ("gpu", "memory"),
    [
        (held({MINE: 300, THEIRS: 600}), 300),
        (held({MINE: 300, THEIRS: 600}, alone=False), 300),
        (held({MINE: 300, MINE + 1: 50}), 350),
        (held({MINE: None}, others=100), 900),
        (held({MINE: None}, alone=False), None),
        (held({THEIRS: 600}, others=100), 900),
        (held({}, others=100), 900),
        (held({}, others=1200), 0),
        (held({}, alone=False), None),
    ],
)
def test_memory(gpu: Held, memory: int | None) -> None:
    """That of the run's processes; where none can be found, all that is new on a GPU that it has alone."""
    assert used([gpu], {MINE, MINE + 1}).memory == memory


def test_memory_of_several_gpus() -> None:
    """It is the sum over all GPUs, and not told where one of them is not."""
    both = [held({MINE: 300}), held({MINE: 200})]
    assert used(both, {MINE}).memory == 500
    assert used([*both, held({}, alone=False)], {MINE}).memory is None


@pytest.mark.parametrize(
    ("gpu", "busy"),
    [
        (held({}), 0.5),
        (held({}, busy=None), None),
        (held({}, alone=False, busy_by={MINE: 0.25, THEIRS: 0.5}), 0.25),
        (held({}, alone=False, busy_by={MINE: 0.75, MINE + 1: 0.75}), 1.0),
        (held({}, alone=False, busy_by={}), 0.0),
        (held({}, alone=False), None),
    ],
)
def test_time(gpu: Held, busy: float | None) -> None:
    """That of a GPU which a run has alone is the run's; of one that it shares, that of its processes."""
    assert used([gpu], {MINE, MINE + 1}).busy == busy


def test_time_of_several_gpus() -> None:
    """It is the mean over the GPUs that tell it; of one that is shared nothing is known without processes."""
    assert used([held({}, busy=1.0), held({}, busy=0.5), held({}, busy=None)], ()).busy == 0.75
    assert used([held({}, alone=False, busy_by={})], ()).busy is None


def test_a_tally() -> None:
    """The highest memory and the mean share of time count; looks that saw nothing do not."""
    tally = Tally()
    assert tally.total() == Used()
    for seen in (Used(5, 0.5), Used(9, None), Used(None, 1.0), Used(7, 0.0)):
        tally.add(seen)
    assert tally.total() == Used(9, 0.5)
