"""The GPUs of a host, as NVIDIA's library tells them: a stand-in for it that is loaded as the real one is."""

import asyncio
import os
import threading
from collections.abc import Callable

import pytest
from structlog.testing import CapturingLogger

from gurney.model.resources import Gpu
from gurney.settings import GIB, MIB, Settings
from gurney.testing.nvml import LOST, MISMATCH, RESET_REQUIRED, Card, FakeNvml, Instance, Process
from services.agent import gpu_readings, gpus
from services.agent.gpu_readings import DriverError, NoGpusError, Reading
from services.agent.gpus import Gpus, NvmlSource, Source

needs_cc = pytest.mark.needs("cc")
ONE, TWO = Card("GPU-1", used=GIB, busy=40), Card("GPU-2", 24 * GIB, name="NVIDIA L4", capability="8.9")
DIVIDED = Card("GPU-1", instances=[Instance("MIG-a", used=MIB), Instance("MIG-b", 20 * GIB, name="MIG 2g.20gb")])
SECONDS = 20.0


def health(reading: Reading) -> dict[str, str]:
    """Return the health of each GPU that answers."""
    return {device.gpu.uuid: device.gpu.health for device in reading.devices}


def looked_at(*readings: Reading) -> dict[str, str]:
    """Return the health of each GPU that the host has after some looks."""
    known: tuple[Gpu, ...] = ()
    for reading in readings:
        known = gpu_readings.inventory(known, reading)
    return {gpu.uuid: gpu.health for gpu in known}


# --- one look ---


@needs_cc
def test_no_gpu(nvml: FakeNvml) -> None:
    """A driver without a GPU tells of none; no driver, and no library, are no fault."""
    assert NvmlSource().look().devices == ()
    nvml.has_no_driver()
    with pytest.raises(NoGpusError):
        NvmlSource().look()


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without NVIDIA's library has no GPU."""
    monkeypatch.setattr(gpus, "LIBRARY", "libnvidia-ml-that-is-nowhere.so.1")
    with pytest.raises(NoGpusError):
        NvmlSource().look()


@needs_cc
def test_gpus_of_a_host(nvml: FakeNvml) -> None:
    """Each GPU is told with all that is known of it."""
    nvml.says(ONE, TWO)
    first, second = NvmlSource().look().devices
    assert first.gpu == Gpu(
        uuid="GPU-1",
        model="NVIDIA A100 80GB PCIe",
        memory=80 * GIB,
        used=GIB,
        compute_capability="8.0",
        driver="570.86",
    )
    assert first.busy == pytest.approx(0.4)
    assert (second.gpu.uuid, second.gpu.memory, second.gpu.model) == ("GPU-2", 24 * GIB, "NVIDIA L4")


@needs_cc
def test_an_old_driver_is_asked_in_the_old_way(old_nvml: FakeNvml) -> None:
    """A driver that does not know the newer questions is asked the older ones; what it does not tell is left out."""
    old_nvml.says(ONE, processes=[Process("GPU-1", 10, MIB)])
    (device,) = NvmlSource().look().devices
    assert (device.gpu.used, device.gpu.health, dict(device.processes)) == (GIB, "ok", {10: MIB})


@needs_cc
def test_a_divided_gpu_is_its_instances(nvml: FakeNvml) -> None:
    """Of a GPU in MIG mode the instances can be given to runs, and it itself cannot."""
    nvml.says(DIVIDED, TWO)
    found = {device.gpu.uuid: device for device in NvmlSource().look().devices}
    assert list(found) == ["MIG-a", "MIG-b", "GPU-2"]
    one = found["MIG-b"].gpu
    assert (one.parent, one.memory, one.model) == ("GPU-1", 20 * GIB, "MIG 2g.20gb")
    assert (one.compute_capability, one.health) == ("8.0", "ok")
    assert (found["MIG-a"].gpu.used, found["MIG-a"].busy, found["MIG-a"].busy_by) == (MIB, None, None)
    assert found["GPU-2"].gpu.parent is None


@needs_cc
def test_a_divided_gpu_without_instances_is_nothing(nvml: FakeNvml) -> None:
    """A GPU in MIG mode that was not divided yet cannot be given to anybody."""
    nvml.says(Card("GPU-1", instances=[]))
    reading = NvmlSource().look()
    assert (len(reading.devices), *reading.cards) == (0, "GPU-1")


@needs_cc
@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (Card("GPU-1", error=LOST), "lost"),
        (Card("GPU-1", error=RESET_REQUIRED), "reset_required"),
        (Card("GPU-1", error=999), "failing"),
        (Card("GPU-1", ecc=1), "memory_errors"),
        (Card("GPU-1", xid=79), "xid_79"),
        (Card("GPU-1", xid=31), "ok"),
    ],
)
def test_health(nvml: FakeNvml, card: Card, expected: str) -> None:
    """A GPU that fails, or reports what is not an application's own fault, says so; the other one is as before."""
    source = NvmlSource()
    nvml.says(ONE, TWO)
    first = source.look()
    nvml.says(card, TWO)
    assert looked_at(first, source.look(), source.look()) == {"GPU-2": "ok", "GPU-1": expected}


@needs_cc
def test_a_gpu_that_was_lost_before_the_agent_came(nvml: FakeNvml) -> None:
    """A GPU that does not even tell its name is a fault of the node."""
    nvml.says(Card("GPU-1", error=LOST), TWO)
    reading = NvmlSource().look()
    assert health(reading) == {"GPU-2": "ok"}
    assert "GPU 0" in reading.faults[0]


@needs_cc
def test_a_gpu_that_comes_back(nvml: FakeNvml) -> None:
    """A GPU that answers again is fit again; one that left the list is lost."""
    source = NvmlSource()
    nvml.says(TWO, ONE)
    first = source.look()
    nvml.says(TWO)
    assert looked_at(first, source.look()) == {"GPU-2": "ok", "GPU-1": "lost"}
    nvml.says(TWO, ONE)
    assert looked_at(first, source.look()) == {"GPU-2": "ok", "GPU-1": "ok"}


@needs_cc
def test_a_gpu_that_is_divided_meanwhile(nvml: FakeNvml) -> None:
    """A GPU that was divided, and instances that were divided in another way, are no loss; a lost card's are."""
    source = NvmlSource()
    nvml.says(ONE)
    whole = source.look()
    nvml.says(DIVIDED)
    divided = source.look()
    assert looked_at(whole, divided) == {"MIG-a": "ok", "MIG-b": "ok"}
    nvml.says(Card("GPU-1", instances=[Instance("MIG-c")]))
    assert looked_at(whole, divided, source.look()) == {"MIG-c": "ok"}
    nvml.says(Card("GPU-1", instances=DIVIDED.instances, error=LOST))
    assert looked_at(divided, source.look()) == {"MIG-a": "lost", "MIG-b": "lost"}


@needs_cc
def test_processes(nvml: FakeNvml) -> None:
    """What each process holds is told by device, also where the driver does not tell how much."""
    held = [
        Process("GPU-1", 10, 2 * GIB, 30),
        Process("GPU-1", 11, -1),
        Process("MIG-a", 12, MIB),
    ]
    nvml.says(ONE, Card("GPU-3", instances=[Instance("MIG-a")]), processes=held)
    source = NvmlSource()
    found = {device.gpu.uuid: device for device in source.look().devices}
    assert found["GPU-1"].processes == {10: 2 * GIB, 11: None}
    assert found["MIG-a"].processes == {12: MIB}
    assert found["GPU-1"].busy_by == {10: 0.3}
    nvml.says(ONE)
    assert source.look().devices[0].busy_by == {}


@needs_cc
def test_samples_that_are_rubbish(nvml: FakeNvml) -> None:
    """Samples of nobody, or of more than all there is, are passed over, and keep later ones from nothing."""
    nvml.says(ONE, processes=[Process("GPU-1", 10, GIB, 2**31 - 16), Process("GPU-1", 11, -2, 50)])
    source = NvmlSource()
    assert source.look().devices[0].busy_by == {}
    nvml.says(ONE, processes=[Process("GPU-1", 10, GIB, 40), Process("GPU-1", 11, -2, 50)])
    assert source.look().devices[0].busy_by == {10: 0.4}
    source.close()


@needs_cc
@pytest.mark.parametrize("driver", ["nvml", "old_nvml"])
def test_what_the_driver_keeps_for_itself_is_in_use(request: pytest.FixtureRequest, driver: str) -> None:
    """No run can have it, whether or not the driver counts it as used."""
    request.getfixturevalue(driver).says(Card("GPU-1", used=GIB, reserved=512 * MIB))
    source = NvmlSource()
    assert source.look().devices[0].gpu.used == GIB + 512 * MIB
    source.close()


@needs_cc
def test_a_driver_that_fails_as_a_whole(nvml: FakeNvml) -> None:
    """A driver that does not go with its library is a fault, and looked for again."""
    nvml.says(init=MISMATCH)
    source = NvmlSource()
    with pytest.raises(DriverError):
        source.look()
    nvml.says(ONE)
    assert health(source.look()) == {"GPU-1": "ok"}
    nvml.has_no_driver()
    with pytest.raises(DriverError):
        source.look()
    nvml.says(ONE)
    assert health(source.look()) == {"GPU-1": "ok"}


# --- the thread ---


class Slow:
    """A source whose looks are held back until the test lets them go."""

    def __init__(self) -> None:
        self.reading = Reading(0.0)
        self.free = threading.Event()
        self.free.set()
        self.looks = 0

    def look(self) -> Reading:
        self.looks += 1
        self.free.wait()
        return self.reading

    def close(self) -> None:
        return


def settings(**more: object) -> Settings:
    return Settings(node="n1", heartbeat_interval=0.02, **more)  # type: ignore[arg-type]


async def until(true: Callable[[], object]) -> None:
    """Wait until the thread has made it true."""
    async with asyncio.timeout(SECONDS):
        while not true():
            await asyncio.sleep(0.01)


def health_now(found: Gpus) -> dict[str, str]:
    return {gpu.uuid: gpu.health for gpu in found.now(())}


@needs_cc
async def test_the_inventory_follows_the_driver(nvml: FakeNvml) -> None:
    """What is known follows the driver by itself, through all that may befall it."""
    nvml.says(ONE, TWO)
    async with Gpus(settings()) as found:
        assert health_now(found) == {"GPU-1": "ok", "GPU-2": "ok"}
        assert found.unfit(["GPU-1"]) == {}
        nvml.says(Card("GPU-1", error=LOST), TWO)
        await until(lambda: health_now(found)["GPU-1"] == "lost")
        assert found.unfit(["GPU-1", "GPU-2", "GPU-9"]) == {"GPU-1": "lost", "GPU-9": "lost"}
        assert list(found.faults) == []
        nvml.has_no_driver()
        await until(lambda: health_now(found) == {"GPU-1": "failing", "GPU-2": "failing"})
        assert "driver" in found.faults[0]
        nvml.says(ONE, TWO)
        await until(lambda: health_now(found) == {"GPU-1": "ok", "GPU-2": "ok"})
        assert list(found.faults) == []


@needs_cc
async def test_a_driver_that_hangs(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a driver that hangs: the GPUs are told as last seen, as silent, and come back with it."""
    monkeypatch.setattr(gpus, "SILENT_AFTER_S", 0.1)
    nvml.says(ONE)
    async with Gpus(settings()) as found:
        nvml.says(ONE, hang="nvmlDeviceGetMemoryInfo_v2")
        await until(lambda: health_now(found) == {"GPU-1": "silent"})
        assert found.now(())[0].used == GIB
        assert list(found.faults) == ["the NVIDIA driver does not answer"]
        nvml.says(ONE)
        await until(lambda: health_now(found) == {"GPU-1": "ok"})
        assert list(found.faults) == []


async def test_a_driver_that_hangs_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent begins without a driver that does not answer its first question, and ends without it."""
    monkeypatch.setattr(gpus, "FIRST_S", 0.05)
    monkeypatch.setattr(gpus, "MEASURING_S", 0.05)
    monkeypatch.setattr(gpus, "SILENT_AFTER_S", 0.0)
    source = Slow()
    source.free.clear()
    async with Gpus(settings(), lambda: source) as found:
        assert found.now(()) == ()
        assert list(found.faults) == ["the NVIDIA driver does not answer"]
    source.free.set()


async def test_absence_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without GPUs says so once, as news and not as a fault."""
    monkeypatch.setattr(gpus, "ABSENT_S", 0.01)
    logger = CapturingLogger()
    monkeypatch.setattr(gpus, "_log", logger)

    class Nothing(Slow):
        def look(self) -> Reading:
            self.looks += 1
            raise NoGpusError("no library")

    source = Nothing()
    async with Gpus(settings(), lambda: source) as found:
        await until(lambda: source.looks > 3)
        assert [*found.now(()), *found.faults] == []
    assert [call.method_name for call in logger.calls] == ["info"]


async def test_any_error_is_a_fault_that_passes() -> None:
    """Whatever goes wrong in a look, the thread goes on."""

    class Broken(Slow):
        def look(self) -> Reading:
            self.looks += 1
            if self.looks < 3:
                raise ValueError("what nobody thought of")
            return self.reading

    source = Broken()
    async with Gpus(settings(), lambda: source) as found:
        await until(lambda: source.looks > 3)
        assert list(found.faults) == []


async def test_a_look_that_is_waited_for() -> None:
    """Who needs to know how things are now gets a look of his own, and waits for it no longer than he can."""
    source = Slow()
    async with Gpus(Settings(node="n1", heartbeat_interval=5.0), lambda: source) as found:
        source.reading = Reading(1.0, (gpu_readings.Device(Gpu(uuid="GPU-1", model="A", memory=GIB)),))
        await found.look_again()
        assert health_now(found) == {"GPU-1": "ok"}
    async with Gpus(settings(gpus="1x1Gi"), no_source) as found:
        await found.look_again()


async def test_memory_of_others() -> None:
    """What is in use while no run has a GPU is of others, and stays so while a run has it."""
    source = Slow()
    source.reading = Reading(0.0, (gpu_readings.Device(Gpu(uuid="GPU-1", model="A", memory=GIB, used=5)),))
    async with Gpus(settings(), lambda: source) as found:
        assert [gpu.others for gpu in found.now(())] == [5]
        seen = found.now(())[0]
        source.reading = Reading(1.0, (gpu_readings.Device(seen.but(used=50)),))
        await until(lambda: found.now(["GPU-1"])[0].used == 50)
        assert (found.now(["GPU-1"])[0].others, found.others("GPU-1")) == (5, 5)
        assert found.now(())[0].others == 50
        source.reading = Reading(2.0, (gpu_readings.Device(seen.but(used=3)),))
        await until(lambda: found.now(["GPU-1"])[0].used == 3)
        assert found.now(["GPU-1"])[0].others == 3


async def test_memory_of_a_run_that_has_ended_is_not_of_others() -> None:
    """What a look has seen that began before a run ended is not told to be of others."""
    source = Slow()
    source.reading = Reading(0.0, (gpu_readings.Device(Gpu(uuid="GPU-1", model="A", memory=GIB, used=50)),))
    async with Gpus(Settings(node="n1", heartbeat_interval=5.0), lambda: source) as found:
        assert [gpu.others for gpu in found.now(["GPU-1"])] == [0]
        found.let_go(["GPU-1"])
        assert [gpu.others for gpu in found.now(())] == [0]
        await found.look_again()
        assert [gpu.others for gpu in found.now(["GPU-1"])] == [0]
        assert [gpu.others for gpu in found.now(())] == [50]


# --- GPUs on paper ---


def test_described_gpus() -> None:
    """GPUs that are described have what the description says, and a name of their own on each node."""
    found = gpu_readings.described("2x80Gi:NVIDIA A100:8.0,1x512Mi", "n1")
    assert [(gpu.uuid, gpu.model, gpu.memory, gpu.compute_capability) for gpu in found] == [
        ("GPU-simulated-n1-0", "NVIDIA A100", 80 * GIB, "8.0"),
        ("GPU-simulated-n1-1", "NVIDIA A100", 80 * GIB, "8.0"),
        ("GPU-simulated-n1-2", "simulated", 512 * MIB, None),
    ]


def no_source() -> Source:
    """Where nobody is to look."""
    raise AssertionError


@pytest.mark.parametrize(("text", "count"), [("3x1Gi", 3), ("none", 0)])
async def test_described_gpus_are_asked_of_nobody(text: str, count: int) -> None:
    """A host whose GPUs are described, or kept from jobs, does not ask its driver."""
    async with Gpus(settings(gpus=text), no_source) as found:
        assert len(found.now(())) == count
        assert found.simulated is (count > 0)
        assert found.unfit([gpu.uuid for gpu in found.now(())]) == {}


@pytest.mark.parametrize("text", ["4", "4x80", "0x1Gi", "4x80GB", "x80Gi", "4x80Gi:", "4x80Gi,", "1x1Gi:A:9"])
def test_descriptions_that_say_nothing(text: str) -> None:
    """A description that cannot be read is refused at the start."""
    with pytest.raises(ValueError, match="gpus"):
        settings(gpus=text)


def test_a_library_of_a_test_is_not_the_hosts() -> None:
    """Outside of its tests nothing points to the stand-in."""
    assert (gpus.LIBRARY, "GURNEY_FAKE_NVML" in os.environ) == ("libnvidia-ml.so.1", False)
