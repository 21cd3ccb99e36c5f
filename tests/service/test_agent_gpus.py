"""The agent and its GPUs: what it tells of them, what a run gets of them, and what a run used."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from gurney.model.base import Reason
from gurney.model.run import StartRun
from gurney.runtime.process import ProcessRuntime
from gurney.runtime.supervisor import procfs
from gurney.settings import GIB, MIB, Settings
from gurney.testing.nats import NatsServer
from gurney.testing.nvml import LOST, Card, FakeNvml, Instance, Process
from services.agent import __main__ as agent
from services.agent import gpu_meter, gpu_probe, gpu_use, gpus
from services.agent.gpu_meter import Meter
from services.agent.gpus import Gpus
from tests.contract.runtime_harness import processes_of
from tests.service import agent_house
from tests.service.agent_house import SECONDS, House, a_host, neighbours

pytestmark = [pytest.mark.needs("nats"), pytest.mark.needs("cc")]

ONE = Card("GPU-1", used=GIB, busy=40)
DIVIDED = Card("GPU-2", instances=[Instance("MIG-a"), Instance("MIG-b")])
WAIT = 'echo "$CUDA_VISIBLE_DEVICES"; while [ ! -e "$OUT/go" ]; do sleep 0.05; done; exit '


class Meters:
    """The meter of the agent that was built last."""

    def __init__(self) -> None:
        self.made: Meter

    def make(self, found: Gpus) -> Meter:
        self.made = Meter(found)
        return self.made


@pytest.fixture
def settings(nats_server: NatsServer, tmp_path: Path) -> Settings:
    """Settings of one host whose heartbeats come often."""
    return a_host(nats_server.url, tmp_path, stop_grace=0.2, heartbeat_interval=0.1, request_timeout=2)


@pytest.fixture
def meters(monkeypatch: pytest.MonkeyPatch) -> Meters:
    """A meter that looks often."""
    monkeypatch.setattr(gpus, "MEASURING_S", 0.02)
    monkeypatch.setattr(gpu_meter, "MEASURING_S", 0.02)
    found = Meters()
    monkeypatch.setattr(agent, "Meter", found.make)
    return found


@pytest.fixture
async def house(settings: Settings, nvml: FakeNvml, meters: Meters) -> AsyncIterator[House]:
    """An agent on a host with a GPU, and one that is divided."""
    del meters
    nvml.says(ONE, DIVIDED)
    async with neighbours(settings) as house:
        await house.agent_starts()
        yield house


async def begun(
    house: House, *uuids: str, code: int = 0, script: str = "", share: int = 0
) -> tuple[StartRun, Path, int]:
    """Return a run that has these GPUs, its output folder, and the process of its application."""
    start = house.run(script or f"{WAIT}{code}").but(gpus=uuids, gpu_share=share)
    await house.start(start)
    async with asyncio.timeout(SECONDS):
        while not (pids := await asyncio.to_thread(processes_of, start.run_id)):
            await asyncio.sleep(0.02)
    return start, house.settings.data / "agent" / "work" / start.run_id / "output", min(pids)


async def test_heartbeats_tell_of_gpus(house: House, nvml: FakeNvml) -> None:
    """Each heartbeat has the GPUs and instances as they are now, and how many the node has."""
    heard = house.scheduler.heartbeats
    await house.scheduler.until(lambda: heard and len(heard[-1].gpus) == 3)
    beat = heard[-1]
    assert [(gpu.uuid, gpu.parent) for gpu in beat.gpus] == [("GPU-1", None), ("MIG-a", "GPU-2"), ("MIG-b", "GPU-2")]
    assert (beat.capacity.gpus, beat.simulated, beat.faults) == (3, False, ())
    assert (beat.gpus[0].used, beat.gpus[0].others) == (GIB, GIB)
    nvml.says(Card("GPU-1", error=LOST), DIVIDED)
    await house.scheduler.until(lambda: {gpu.uuid: gpu.health for gpu in heard[-1].gpus}["GPU-1"] == "lost")


async def test_heartbeats_do_not_wait_for_a_driver_that_hangs(
    house: House, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that hangs holds no heartbeat back: they say that it does, and that all is well again after that."""
    monkeypatch.setattr(gpus, "SILENT_AFTER_S", 0.1)
    heard = house.scheduler.heartbeats
    nvml.says(ONE, DIVIDED, hang="nvmlDeviceGetUUID")
    await house.scheduler.until(lambda: heard and {gpu.health for gpu in heard[-1].gpus} == {"silent"})
    count = len(heard)
    await house.scheduler.until(lambda: len(heard) > count + 5)
    assert heard[-1].faults == ("the NVIDIA driver does not answer",)
    nvml.says(ONE, DIVIDED)
    await house.scheduler.until(lambda: {gpu.health for gpu in heard[-1].gpus} == {"ok"})


async def test_a_run_is_measured_by_its_processes(house: House, nvml: FakeNvml, meters: Meters) -> None:
    """A run sees the GPU that was placed; its own processes count, the highest figure and the mean are told."""
    before = REGISTRY.get_sample_value("gurney_run_gpu_peak_memory_bytes_count") or 0
    start, out, pid = await begun(house, "GPU-1")
    for held in (3, 5, 2):
        mine, other = Process("GPU-1", pid, held * GIB), Process("GPU-1", 1, 50 * GIB)
        nvml.says(Card("GPU-1", used=60 * GIB, busy=40), DIVIDED, processes=[mine, other])
        await until_seen(meters, start, 5 * GIB if held == 2 else held * GIB)
    (out / "go").touch()
    outcome = await house.outcome(start)
    assert (outcome.ending, outcome.log_tail) == ("succeeded", ("GPU-1",)), outcome
    assert outcome.usage is not None
    assert (outcome.usage.gpu_peak_memory, outcome.usage.gpu_utilization) == (5 * GIB, 0.4)
    assert REGISTRY.get_sample_value("gurney_run_gpu_peak_memory_bytes_count") == before + 1
    assert REGISTRY.get_sample_value("gurney_run_gpu_utilization_ratio_count")


async def until_seen(meters: Meters, start: StartRun, peak: int) -> None:
    """Wait until the meter has seen so much held by the run."""
    async with asyncio.timeout(SECONDS):
        while meters.made.so_far(start.run_id).memory != peak:
            await asyncio.sleep(0.01)


async def test_a_run_without_known_processes(house: House, nvml: FakeNvml, meters: Meters) -> None:
    """Where the driver names no process of the run, what is new on its GPU is the run's, and what was there is not."""
    heard = house.scheduler.heartbeats
    await house.scheduler.until(lambda: heard and heard[-1].gpus[0].others == GIB)
    start, out, _ = await begun(house, "GPU-1", code=3)
    nvml.says(Card("GPU-1", used=7 * GIB), DIVIDED, processes=[Process("GPU-1", 999_999_999, 6 * GIB)])
    await until_seen(meters, start, 6 * GIB)
    await house.scheduler.until(lambda: heard[-1].gpus[0].used == 7 * GIB)
    assert heard[-1].gpus[0].others == GIB
    (out / "go").touch()
    outcome = await house.outcome(start)
    assert outcome.exit_code == 3
    assert outcome.usage is not None
    assert outcome.usage.gpu_peak_memory == 6 * GIB


async def test_an_instance_is_measured_alone(house: House, nvml: FakeNvml, meters: Meters) -> None:
    """What a run holds on its MIG instance is its own; instances do not tell how busy they are."""
    start, out, pid = await begun(house, "MIG-b")
    nvml.says(ONE, DIVIDED, processes=[Process("MIG-b", pid, 2 * GIB), Process("MIG-a", 1, 3 * GIB)])
    await until_seen(meters, start, 2 * GIB)
    (out / "go").touch()
    outcome = await house.outcome(start)
    assert outcome.usage is not None
    assert (outcome.usage.gpu_peak_memory, outcome.usage.gpu_utilization) == (2 * GIB, None)


async def test_a_run_without_gpus_has_used_none(house: House) -> None:
    """A run that was given no GPU sees none, and nothing is told of its use."""
    _, outcome = await house.finish('echo "[$CUDA_VISIBLE_DEVICES]"')
    assert outcome.log_tail == ("[]",)
    assert outcome.usage is not None
    assert (outcome.usage.gpu_peak_memory, outcome.usage.gpu_utilization) == (None, None)


@pytest.mark.parametrize("uuid", ["GPU-1", "GPU-9"])
async def test_a_gpu_that_is_gone_when_its_run_is_to_start(house: House, nvml: FakeNvml, uuid: str) -> None:
    """A run whose GPU is lost, or was never there, does not start: the attempt is lost, and told why."""
    heard = house.scheduler.heartbeats
    nvml.says(Card("GPU-1", error=LOST), DIVIDED)
    await house.scheduler.until(lambda: heard and {gpu.uuid: gpu.health for gpu in heard[-1].gpus}["GPU-1"] == "lost")
    start = await house.start(house.run("true").but(gpus=(uuid,)))
    outcome = await house.outcome(start)
    assert outcome.ending == "lost"
    assert outcome.reason is not None
    assert outcome.reason.code == "gpu_lost"
    assert f"{uuid} (lost)" in outcome.reason.message
    assert house.counted() == []


@pytest.mark.parametrize(("code", "error", "ending"), [(3, LOST, "lost"), (0, LOST, "succeeded"), (3, 0, "failed")])
async def test_a_gpu_that_is_lost_while_its_run_goes(
    house: House, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, *, code: int, error: int, ending: str
) -> None:
    """A failure of an application whose GPU was lost a moment ago is the host's; a success stays one."""
    monkeypatch.setattr(gpus, "MEASURING_S", 30.0)
    start, out, _ = await begun(house, "GPU-1", code=code)
    nvml.says(Card("GPU-1", error=error), DIVIDED)
    (out / "go").touch()
    outcome = await house.outcome(start)
    assert (outcome.ending, outcome.exit_code) == (ending, code)
    if ending == "lost":
        assert outcome.reason is not None
        assert outcome.reason.code == "gpu_lost"
        assert "GPU-1 (lost)" in outcome.reason.message
        assert "exit code 3" in outcome.reason.message


@pytest.mark.parametrize("back", [False, True])
async def test_a_run_whose_gpu_is_gone_is_ended(
    house: House, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, *, back: bool
) -> None:
    """An application that waits for a GPU which is gone is ended, and the attempt lost, also where it is back then."""
    monkeypatch.setattr(gpus, "GONE_AFTER_S", 0.1)
    start, _, pid = await begun(house, "GPU-1")
    nvml.says(Card("GPU-1", error=LOST), DIVIDED)
    async with asyncio.timeout(SECONDS):
        while await asyncio.to_thread(processes_of, start.run_id):
            if back and not await asyncio.to_thread(procfs.ticks, pid):
                nvml.says(ONE, DIVIDED)
            await asyncio.sleep(0.01)
    outcome = await house.outcome(start)
    assert (outcome.ending, outcome.reason and outcome.reason.code) == ("lost", "gpu_lost")


async def test_a_run_that_is_stopped_is_canceled_whatever_its_gpu_does(house: House, nvml: FakeNvml) -> None:
    """A cancel stays one, also where the GPU is lost meanwhile."""
    start, _, _ = await begun(house, "GPU-1")
    nvml.says(Card("GPU-1", error=LOST), DIVIDED)
    await house.stop(start.run_id)
    assert (await house.outcome(start)).ending == "canceled"


class Refusing(ProcessRuntime):
    """A runtime whose runs may no longer open their GPUs as soon as a test says so."""

    told: bool | None = True
    looks = 0

    async def may_open_gpus(self, run_id: str) -> bool | None:
        del run_id
        type(self).looks += 1
        return self.told


@pytest.fixture
async def refusing(settings: Settings, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    """An agent that looks often whether runs may open their GPUs."""
    monkeypatch.setattr(agent_house, "ProcessRuntime", Refusing)
    monkeypatch.setattr(Refusing, "told", True)
    monkeypatch.setattr(Refusing, "looks", 0)
    monkeypatch.setattr(gpu_probe, "AGAIN_S", 0.01)
    monkeypatch.setattr(gpu_meter, "IDLE_S", 0.2)
    nvml.says(ONE, DIVIDED)
    async with neighbours(settings.model_copy(update={"gpu_probe_interval": 0.05})) as house:
        await house.agent_starts()
        await house.scheduler.until(lambda: house.scheduler.heartbeats)
        yield house


@pytest.mark.usefixtures("meters")
async def test_a_run_whose_gpus_vanished_from_its_container_is_ended(
    refusing: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that may not open its GPUs any more, and does not compute, is ended: infrastructure; the GPU stays fit."""
    start, _, _ = await begun(refusing, "GPU-1")
    monkeypatch.setattr(Refusing, "told", False)
    outcome = await refusing.outcome(start)
    assert (outcome.ending, outcome.reason and outcome.reason.code) == ("lost", "gpu_lost")
    assert outcome.reason
    assert outcome.reason.message.startswith("its container could not open the devices of its GPUs any more")
    assert {gpu.health for gpu in refusing.scheduler.heartbeats[-1].gpus} == {"ok"}


@pytest.mark.usefixtures("meters")
@pytest.mark.parametrize(("code", "ending"), [(0, "succeeded"), (3, "lost")])
async def test_a_run_that_computes_on_without_its_devices(
    refusing: House, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, *, code: int, ending: str
) -> None:
    """What it has opened before goes on working, so it may go on; a failure is not its own then, a success is."""
    start, out, pid = await begun(refusing, "GPU-1", code=code)
    nvml.says(Card("GPU-1", used=GIB), DIVIDED, processes=[Process("GPU-1", pid, 500 * MIB)])
    await looked(refusing)
    monkeypatch.setattr(Refusing, "told", False)
    await looked(refusing)
    (out / "go").touch()
    outcome = await refusing.outcome(start)
    assert (outcome.ending, outcome.exit_code) == (ending, code)
    assert outcome.reason is None or outcome.reason.code == "gpu_lost"


async def looked(house: House) -> None:
    """Wait until heartbeats have come for half a second: runs were measured and looked at several times meanwhile."""
    count = len(house.scheduler.heartbeats) + 6
    await house.scheduler.until(lambda: len(house.scheduler.heartbeats) > count)


@pytest.mark.usefixtures("meters")
async def test_a_run_of_which_nobody_can_tell_whether_it_has_its_gpus(
    refusing: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node says so, and nothing else comes of it."""
    monkeypatch.setattr(Refusing, "told", None)
    start, out, _ = await begun(refusing, "GPU-1", code=3)
    heard = refusing.scheduler.heartbeats
    await refusing.scheduler.until(lambda: any(start.run_id in fault for fault in heard[-1].faults))
    (out / "go").touch()
    outcome = await refusing.outcome(start)
    assert (outcome.ending, outcome.reason and outcome.reason.code) == ("failed", "exit_nonzero")
    await refusing.scheduler.until(lambda: not heard[-1].faults)


@pytest.mark.usefixtures("meters")
async def test_a_refusal_of_a_moment_is_none(refusing: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that are half made at one look and whole at the next end nobody's run."""
    monkeypatch.setattr(gpu_probe, "AGAIN_S", 0.3)
    start, out, _ = await begun(refusing, "GPU-1", code=3)
    await refusing.scheduler.until(lambda: Refusing.looks)
    answers = iter([False])

    async def once(self: Refusing, run_id: str) -> bool | None:
        del self, run_id
        return next(answers, True)

    monkeypatch.setattr(Refusing, "may_open_gpus", once)
    await looked(refusing)
    (out / "go").touch()
    outcome = await refusing.outcome(start)
    assert (outcome.ending, outcome.reason and outcome.reason.code) == ("failed", "exit_nonzero")


SHARES = 'while [ ! -e "$OUT/go" ]; do sleep 0.05; done; echo "$GURNEY_GPU_MEMORY_MIB $GURNEY_GPU_MEMORY_FRACTION"'


async def sharing(house: House, share: int) -> tuple[StartRun, Path, int]:
    """Return a run that has so many MiB of the GPU, its output folder, and its process."""
    return await begun(house, "GPU-1", script=SHARES, share=share)


def held_there(*held: tuple[int, int]) -> tuple[Card, list[Process]]:
    """Return the GPU as the driver tells it when processes hold so many MiB there."""
    used = sum(size for _, size in held)
    return Card("GPU-1", used=GIB + used * MIB), [Process("GPU-1", pid, size * MIB) for pid, size in held]


async def test_a_run_that_takes_more_than_its_share_is_stopped(
    house: House, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two runs that share a GPU the one that goes far beyond its share fails by it; its neighbour succeeds."""
    monkeypatch.setattr(gpu_use, "EXCESS_S", 0.2)
    good, out, neighbour = await sharing(house, 8192)
    bad, _, offender = await sharing(house, 1024)
    card, processes = held_there((neighbour, 9000), (offender, 1128))
    nvml.says(card, DIVIDED, processes=processes)
    outcome = await house.outcome(bad)
    assert (outcome.ending, outcome.reason) == (
        "failed",
        Reason(code="gpu_memory_exceeded", message="it held 1128 MiB of GPU-1, of which it had 1024 MiB"),
    )
    assert outcome.usage is not None
    assert outcome.usage.gpu_peak_memory == 1128 * MIB
    assert not await asyncio.to_thread(processes_of, bad.run_id)
    (out / "go").touch()
    outcome = await house.outcome(good)
    assert (outcome.ending, outcome.log_tail) == ("succeeded", ("8192 0.1",)), outcome
    assert outcome.usage is not None
    assert outcome.usage.gpu_peak_memory == 9000 * MIB


async def test_a_run_that_was_ended_for_its_gpu_memory_stays_so(
    house: House, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that begins anew still knows why it ended a run, also where it had not come to ending it."""
    monkeypatch.setattr(gpu_use, "EXCESS_S", 0.2)
    stopping = asyncio.Event()

    async def never(*_: object) -> None:
        stopping.set()
        await asyncio.Event().wait()

    start, _, pid = await sharing(house, 1024)
    with monkeypatch.context() as patched:
        patched.setattr(ProcessRuntime, "stop", never)
        card, processes = held_there((pid, 2000))
        nvml.says(card, DIVIDED, processes=processes)
        async with asyncio.timeout(SECONDS):
            await stopping.wait()
        await house.agent_ends()
    nvml.says(ONE, DIVIDED)
    await house.agent_starts()
    outcome = await house.outcome(start)
    assert (outcome.ending, outcome.reason and outcome.reason.code) == ("failed", "gpu_memory_exceeded")


async def test_a_cancel_of_a_run_that_is_beyond_its_share_stays_one(
    house: House, nvml: FakeNvml, meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody has canceled is canceled, whatever it held."""
    start, _, pid = await begun(house, "GPU-1", script="trap '' TERM; while :; do sleep 0.05; done", share=1024)
    card, processes = held_there((pid, 2000))
    nvml.says(card, DIVIDED, processes=processes)
    await until_seen(meters, start, 2000 * MIB)
    await house.stop(start.run_id)
    monkeypatch.setattr(gpu_use, "EXCESS_S", 0.0)  # it is found while it has its grace, or it ends before
    assert (await house.outcome(start)).ending == "canceled"


async def test_nobody_is_stopped_on_a_guess(
    house: House, nvml: FakeNvml, meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory cannot be told to be of a run, its node says so and the run goes on, also alone on its GPU."""
    monkeypatch.setattr(gpu_use, "EXCESS_S", 0.1)
    heard = house.scheduler.heartbeats
    await house.scheduler.until(lambda: heard and heard[-1].gpus[0].others == GIB)
    start, out, _ = await sharing(house, 1024)
    card, processes = held_there((999_999_999, 6000))
    nvml.says(card, DIVIDED, processes=processes)
    await until_seen(meters, start, 6000 * MIB)
    await house.scheduler.until(lambda: any("GPU-1" in fault for fault in heard[-1].faults))
    count = len(heard)
    await house.scheduler.until(lambda: len(heard) > count + 5)  # half a second, the excess that is allowed many times
    (out / "go").touch()
    assert (await house.outcome(start)).ending == "succeeded"
    await house.scheduler.until(lambda: not heard[-1].faults)


@pytest.mark.parametrize("sharing_allowed", [False, True])
async def test_heartbeats_tell_whether_gpus_are_shared(
    settings: Settings, nvml: FakeNvml, *, sharing_allowed: bool
) -> None:
    """A node's GPUs are exclusive unless its setting says otherwise."""
    nvml.says(ONE)
    async with neighbours(settings.model_copy(update={"gpu_sharing": sharing_allowed})) as house:
        await house.agent_starts()
        await house.scheduler.until(lambda: house.scheduler.heartbeats)
        assert house.scheduler.heartbeats[-1].gpu_sharing is sharing_allowed


async def test_a_start_that_does_not_fit_beside_shares_is_refused(house: House, nvml: FakeNvml) -> None:
    """Whoever asks for more of a GPU than is left, or for all of it, is not begun beside who shares it."""
    nvml.says(ONE, DIVIDED)
    first, out, _ = await sharing(house, 60 * 1024)
    refused = [house.run("true").but(gpus=("GPU-1",), gpu_share=share) for share in (0, 20 * 1024 + 1)]
    for start in refused:
        await house.start(start)
    second, _, _ = await sharing(house, 20 * 1024)
    assert set(house.counted()) == {first.run_id, second.run_id}
    (out / "go").touch()
    assert (await house.outcome(first)).ending == "succeeded"
    await house.stop(second.run_id)
    await house.outcome(second)
    assert not {start.run_id for start in refused} & set(house.scheduler.ends)


async def test_gpus_on_paper(settings: Settings, nvml: FakeNvml, meters: Meters) -> None:
    """GPUs that are described mark the node as simulated, are told to runs, and are not measured."""
    nvml.says(ONE)
    settings = settings.model_copy(update={"gpus": "2x16Gi:A100"})
    async with neighbours(settings) as house:
        await house.agent_starts()
        heard = house.scheduler.heartbeats
        await house.scheduler.until(lambda: heard)
        assert (heard[-1].simulated, heard[-1].capacity.gpus) == (True, 2)
        assert {(gpu.model, gpu.memory) for gpu in heard[-1].gpus} == {("A100", 16 * GIB)}
        start = await house.start(house.run('echo "$CUDA_VISIBLE_DEVICES"').but(gpus=(heard[-1].gpus[1].uuid,)))
        outcome = await house.outcome(start)
        assert outcome.log_tail == ("GPU-simulated-n1-1",)
        assert outcome.usage is not None
        assert outcome.usage.gpu_peak_memory is None
        assert meters.made.so_far(start.run_id).memory is None
