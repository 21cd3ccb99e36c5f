"""What a run uses of its GPUs, out of what is seen of them."""

from collections.abc import Collection, Mapping
from typing import cast

import pytest

from gurney.errors import Unavailable
from gurney.model.resources import Gpu
from gurney.runtime.port import Runtime
from gurney.settings import GIB, Settings
from services.agent.gpu_meter import Meter
from services.agent.gpu_readings import Device, Reading
from services.agent.gpu_use import Held, Tally, Used, Watch, is_untold, own, used
from services.agent.gpus import Gpus

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


@pytest.mark.parametrize(
    ("processes", "memory"),
    [({MINE: 300, MINE + 1: 5, THEIRS: 600}, 305), ({MINE: 300, MINE + 1: None}, None), ({THEIRS: 600}, None)],
)
def test_what_is_known_to_be_a_runs_own(processes: Mapping[int, int | None], memory: int | None) -> None:
    """Only what the driver tells of a run's own processes is, also on a GPU that the run has alone."""
    assert own(held(processes).device, {MINE, MINE + 1}) == memory


#: Looks (seconds, bytes) at a run whose share is 1,000 bytes, and when it is found to take too much for too long.
LOOKS: list[tuple[list[tuple[float, int | None]], float | None]] = [
    ([(0, 1101), (1, 1101), (2, 1101)], 2),
    ([(0, 1100), (1, 1100), (9, 1100)], None),
    ([(0, 5000), (1, 5000), (1.9, 5000)], None),
    ([(0, 900), (5, 5000), (6, 5000), (7.5, 1200)], 7.5),
    ([(0, 5000), (1, 900), (2, 5000), (3, 5000)], None),
    ([(0, 5000), (1, None), (2, 5000), (3, 5000), (4, 5000)], 4),
    ([(0, None), (1, None), (2, None)], None),
]


@pytest.mark.parametrize(("looks", "found"), LOOKS)
def test_who_takes_more_than_its_share(looks: list[tuple[float, int | None]], found: float | None) -> None:
    """It is who holds more than a tenth beyond its share at every look of 2 s; a look that cannot tell begins anew."""
    watch = Watch(1000)
    assert next((at for at, memory in looks if watch.saw(memory, at)), None) == found


@pytest.mark.parametrize(
    ("others", "known", "untold"),
    [(0, [], True), (0, [300, 600], True), (0, [3 * GIB, None], False), (3 * GIB, [None], False), (0, [None], True)],
)
def test_memory_of_which_nobody_can_say_whose_it_is(others: int, known: list[int | None], *, untold: bool) -> None:
    """It is what is in use beyond what was there before, and what runs are known to hold."""
    assert is_untold(held({}, used_bytes=3 * GIB + 1).device, others, known) is untold


def test_a_tally() -> None:
    """The highest memory and the mean share of time count; looks that saw nothing do not."""
    tally = Tally()
    assert tally.total() == Used()
    for seen in (Used(5, 0.5), Used(9, None), Used(None, 1.0), Used(7, 0.0)):
        tally.add(seen)
    assert tally.total() == Used(9, 0.5)


class Looker:
    """Two runs' processes on one GPU, and the other GPU empty."""

    def __init__(self) -> None:
        shared = Gpu(uuid="GPU-1", model="A", memory=10_000, used=1000)
        busy_by = {MINE: 0.25, THEIRS: 0.5}
        self.reading = Reading(0.0, (Device(shared, {MINE: 300, THEIRS: 600}, 0.75, busy_by),))

    def look(self) -> Reading:
        return self.reading

    def close(self) -> None:
        return


class Owners:
    """What the meter asks of a runtime."""

    def __init__(self, owners: Mapping[int, str] | None) -> None:
        self.known = owners

    async def owners(self, pids: Collection[int]) -> Mapping[int, str]:
        if self.known is None:
            raise Unavailable("away")
        return {pid: self.known[pid] for pid in pids}


async def metered(owners: Mapping[int, str] | None, runs: Mapping[str, tuple[str, ...]]) -> dict[str, Used]:
    """Return what one look has seen of runs that have these GPUs."""
    async with Gpus(Settings(node="n1"), Looker) as gpus:
        meter = Meter(gpus)
        for run_id, uuids in runs.items():
            meter.begin(run_id, uuids, cast("Runtime", Owners(owners)))
        assert gpus.reading
        await meter.look(gpus.reading)
        return {run_id: meter.end(run_id) for run_id in runs}


async def test_runs_that_share_a_gpu_are_told_apart() -> None:
    """Each run is told what its own processes used of a GPU that it shares."""
    runs = {"a-1": ("GPU-1",), "b-1": ("GPU-1",)}
    found = await metered({MINE: "a-1", THEIRS: "b-1"}, runs)
    assert found == {"a-1": Used(300, 0.25), "b-1": Used(600, 0.5)}


async def test_a_runtime_that_does_not_say_whose_processes_they_are() -> None:
    """Then a run that has its GPU alone is told all of its use, and runs that share one are told nothing."""
    assert await metered(None, {"a-1": ("GPU-1",)}) == {"a-1": Used(1000, 0.75)}
    shared = await metered(None, {"a-1": ("GPU-1",), "b-1": ("GPU-1",)})
    assert shared == {"a-1": Used(), "b-1": Used()}


async def test_a_run_one_of_whose_gpus_is_lost() -> None:
    """What is left of its GPUs is not what it uses: such a look does not count."""
    assert await metered({MINE: "a-1", THEIRS: "b-1"}, {"a-1": ("GPU-1", "GPU-2")}) == {"a-1": Used()}
