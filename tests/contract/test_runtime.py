"""What every runtime promises (`gurney.runtime.port`)."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from gurney import clock
from gurney.errors import Conflict, Invalid, MapUnreadable
from gurney.runtime.port import Cause, End
from gurney.testing.docker import DockerDaemon
from gurney.testing.registry import Registry
from tests.contract.docker_harness import DockerHarness, make_app
from tests.contract.runtime_harness import GRACE_S, MIB, SECONDS, App, Harness, ProcessHarness, processes_of

Make = Callable[..., App]

#: A pipeline whose last part holds all of it in memory until it may go.
EAT = '{ head -c 200000000 /dev/zero; read _ < "$OUT/eaten"; } | tail -n 1 > /dev/null'

#: Minutes and seconds as the shell's `times` tells them.
TIMES = re.compile(r"(\d+)m([\d.]+)s")


@pytest.fixture(scope="session")
def docker_app(docker_daemon: DockerDaemon) -> DockerDaemon:
    """The daemon of the run, with the image of the suite."""
    make_app(docker_daemon)
    return docker_daemon


@pytest.fixture(
    params=["process", pytest.param("docker", marks=[pytest.mark.needs("docker"), pytest.mark.needs("registry")])]
)
def closed_harness(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    """One of the runtimes."""
    if request.param == "process":
        return ProcessHarness(tmp_path)
    registry: Registry = request.getfixturevalue("registry")
    return DockerHarness(tmp_path, request.getfixturevalue("docker_app"), f"{registry.address}/nothing:1")


@pytest.fixture
async def harness(closed_harness: Harness) -> AsyncIterator[Harness]:
    """An open runtime; whatever was started through it is ended."""
    await closed_harness.open()
    yield closed_harness
    await closed_harness.finish()


@pytest.fixture
async def app(harness: Harness) -> AsyncIterator[Make]:
    """Make applications of the pinned MAP."""
    digest = (await harness.runtime.inspect(harness.urn)).digest
    made: list[App] = []

    def make(script: str | tuple[str, ...], run_id: str = "job_1-1", *pipes: str) -> App:
        made.append(App(harness, digest, script, run_id))
        made[-1].pipe(*pipes)
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -KILL $$", 137),
        ("kill -TERM $$", 143),
        (("no-such-program",), 127),
        (("./plain",), 126),
    ],
)
async def test_exit_code(app: Make, script: str | tuple[str, ...], code: int) -> None:
    """The end has the exit code as shells count it, 128 + n for a signal, and times that fit each other."""
    end = await app(script).run()
    assert (end.cause, end.exit_code) == (Cause.EXITED, code)
    assert end.started_at is not None
    assert end.stopped_at is not None
    assert end.duration_s is not None
    assert abs((end.stopped_at - end.started_at) - timedelta(seconds=end.duration_s)) < timedelta(seconds=1)


@pytest.mark.parametrize("command", ["no-such-program", "./plain"])
async def test_what_cannot_be_executed_is_named(app: Make, command: str) -> None:
    """A program that is missing or not executable is named in the message and in the log."""
    run = app((command,))
    end = await run.run()
    assert command in end.message
    assert command in run.log()


async def test_empty_command_does_not_begin(app: Make) -> None:
    """A command without a program is an end, too: not started, and the message says why."""
    end = await app(()).run()
    assert (end.cause, end.exit_code, end.started_at) == (Cause.NOT_STARTED, None, None)
    assert "command" in end.message


async def test_start_happens_once(harness: Harness, app: Make) -> None:
    """However often, at once, by whom and when a run is started: it is executed once."""
    run = app('echo >> "$OUT/count"; echo > "$OUT/ready"; read _ < "$OUT/go"', "job_1-1", "ready", "go")
    await asyncio.gather(*(harness.runtime.start(run.spec) for _ in range(5)))
    await run.told("ready")
    await harness.runtime.start(run.spec)
    await harness.reopen()
    await harness.runtime.start(run.spec)
    run.tell("go")
    assert (await run.end()).exit_code == 0
    await harness.runtime.start(run.spec)
    await harness.reopen()
    await harness.runtime.start(run.spec)
    assert (run.output / "count").read_text() == "\n"
    assert (await run.end()).exit_code == 0


async def test_what_is_kept_of_a_map_goes_when_nobody_came_for_it(harness: Harness, app: Make) -> None:
    """What a runtime keeps without a bound is let go of, but not under who came since; a run brings it back."""
    runtime = harness.runtime
    digest = (await runtime.inspect(harness.urn)).digest
    kept = list(await runtime.copies())
    assert kept in ([], [digest])
    assert not await runtime.let_go(digest, 0.0)
    assert list(await runtime.copies()) == kept
    assert await runtime.let_go(digest, clock.monotonic()) == bool(kept)
    assert list(await runtime.copies()) == []
    await runtime.available(harness.urn, digest)
    assert (await app("exit 0").run()).exit_code == 0
    await harness.reopen()
    assert list(await harness.runtime.copies()) == kept


async def test_maps_that_are_here_are_told(harness: Harness) -> None:
    """What a runtime tells of includes the MAP that it has just pinned, also once it is opened again."""
    digest = (await harness.runtime.inspect(harness.urn)).digest
    assert digest in await harness.runtime.held()
    await harness.reopen()
    assert digest in await harness.runtime.held()


async def test_timeout_ends_the_stubborn(app: Make) -> None:
    """An application that ignores SIGTERM is killed after the grace when its time is over."""
    run = app("trap '' TERM; while :; do sleep 1; done")
    run.spec = replace(run.spec, timeout_s=0.3)
    end = await run.run()
    assert (end.cause, end.exit_code) == (Cause.TIMEOUT, 137)
    assert end.duration_s is not None
    assert end.duration_s >= 0.3 + GRACE_S


async def test_timeout_asks_first(app: Make) -> None:
    """An application may clean up on SIGTERM: the cause is the timeout, the exit code its own."""
    run = app("trap 'echo bye; exit 3' TERM; while :; do sleep 0.01; done")
    run.spec = replace(run.spec, timeout_s=0.3)
    end = await run.run()
    assert (end.cause, end.exit_code) == (Cause.TIMEOUT, 3)
    assert "bye" in run.log()


async def test_exit_before_the_timeout_is_an_exit(app: Make) -> None:
    """A timeout that did not come changes nothing."""
    run = app("exit 4")
    run.spec = replace(run.spec, timeout_s=3600.0)
    end = await run.run()
    assert (end.cause, end.exit_code) == (Cause.EXITED, 4)


async def test_stop(harness: Harness, app: Make) -> None:
    """A stopped run gets SIGTERM and its cause is `stopped`."""
    run = app("trap 'exit 0' TERM; echo > \"$OUT/ready\"; while :; do sleep 0.01; done", "job_1-1", "ready")
    await harness.runtime.start(run.spec)
    await run.told("ready")
    await harness.runtime.stop("job_1-1")
    end = await run.end()
    assert (end.cause, end.exit_code) == (Cause.STOPPED, 0)


async def test_stop_kills_after_the_grace(harness: Harness, app: Make) -> None:
    """A run that ignores SIGTERM is killed after the grace; an impatient second stop shortens it."""
    run = app("trap '' TERM; echo > \"$OUT/ready\"; while :; do sleep 1; done", "job_1-1", "ready")
    await harness.runtime.start(run.spec)
    await run.told("ready")
    await harness.runtime.stop("job_1-1", 3600.0)
    await harness.runtime.stop("job_1-1", GRACE_S)
    end = await run.end()
    assert (end.cause, end.exit_code) == (Cause.STOPPED, 137)


async def test_stop_of_the_ended_and_the_unknown(harness: Harness, app: Make) -> None:
    """Stopping a run that has ended or never was is no error and changes nothing."""
    run = app("exit 0")
    await run.run()
    await harness.runtime.stop("job_1-1")
    await harness.runtime.stop("job_2-1")
    assert [each.run_id for each in await harness.runtime.runs()] == ["job_1-1"]
    assert (await run.end()).cause == Cause.EXITED


async def test_memory_is_enforced(app: Make) -> None:
    """A run whose processes together hold more than its memory is killed, with the cause and the peak."""
    run = app(f'{EAT}; read _ < "$OUT/go"; echo survived', "job_1-1", "eaten", "go")
    run.spec = replace(run.spec, memory=50 * MIB)
    end = await run.run()
    assert (end.cause, end.exit_code) == (Cause.MEMORY, 137)
    assert end.peak_memory is not None
    assert end.peak_memory >= 50 * MIB
    assert "survived" not in run.log()


async def test_processor_time_is_measured(app: Make) -> None:
    """The processor time of all of a run's processes is told, as near as the last look was to the end."""
    count = "i=0; while [ $i -lt 700000 ]; do i=$((i+1)); done"
    run = app(f"({count}) & wait; {count}; times", "job_1-1")
    end = await run.run()
    told = sum(60 * float(minutes) + float(seconds) for minutes, seconds in TIMES.findall(run.log()))
    assert told > 0
    assert end.cpu_s is not None
    assert told / 2 < end.cpu_s < told * 2


async def test_memory_within_the_limit(harness: Harness, app: Make) -> None:
    """The same application with enough memory ends well, and its peak was seen."""
    run = app(f"{EAT}; echo survived", "job_1-1", "eaten")
    run.tell("eaten")
    end = await run.run()
    assert (end.cause, end.exit_code) == (Cause.EXITED, 0)
    if harness.sees_short_peaks:
        assert end.peak_memory is not None
        assert 190_000_000 < end.peak_memory < 512 * MIB
    assert "survived" in run.log()


async def test_environment(app: Make) -> None:
    """Absolute paths beat the manifest's relative ones; the extras are there; no GPU is visible unless placed."""
    run = app("env")
    run.spec = replace(
        run.spec,
        environment={"HOLOSCAN_INPUT_PATH": "input/", "HOLOSCAN_OUTPUT_PATH": "output/", "MODE": "fast"},
        extra_environment={"TRACEPARENT": "00-1-2-03"},
    )
    run.spec = replace(run.spec, command=("sh", "-c", 'cd "$HOLOSCAN_INPUT_PATH" && cd "$HOLOSCAN_OUTPUT_PATH" && env'))
    assert (await run.run()).exit_code == 0
    variables = dict(line.split("=", 1) for line in run.log().splitlines())
    assert variables["HOLOSCAN_INPUT_PATH"].startswith("/")
    assert variables["MODE"] == "fast"
    assert variables["TRACEPARENT"] == "00-1-2-03"
    assert variables["GURNEY_RUN_ID"] == "job_1-1"
    assert variables["GURNEY_ATTEMPT"] == "1"
    assert variables["MONAI_JOBID"] == "job_1"
    assert variables["CUDA_VISIBLE_DEVICES"] == ""


async def test_placed_gpus_are_visible(harness: Harness, app: Make) -> None:
    """A run sees exactly the GPUs that were placed, by UUID and in order; without them it does not begin."""
    run = app('echo "$CUDA_VISIBLE_DEVICES"')
    run.spec = replace(run.spec, gpus=("GPU-b", "GPU-a"))
    end = await run.run()
    if harness.has_gpus:
        assert run.log() == "GPU-b,GPU-a\n"
    else:
        assert (end.cause, end.exit_code) == (Cause.NOT_STARTED, None)
        assert "device" in end.message


async def test_gpus_on_paper(app: Make) -> None:
    """GPUs that are not there are told to the run, and keep it from nothing."""
    run = app('echo "$CUDA_VISIBLE_DEVICES"')
    run.spec = replace(run.spec, gpus=("GPU-b", "GPU-a"), gpus_simulated=True)
    assert (await run.run()).exit_code == 0
    assert run.log() == "GPU-b,GPU-a\n"


async def test_processes_of_a_run_are_known(harness: Harness, app: Make) -> None:
    """Which run a process of the host is part of can be told, of children too, as soon as they were seen."""
    run = app('(echo > "$OUT/ready"; read _ < "$OUT/go"; true); exit 0', "job_1-1", "ready", "go")
    ends = harness.runtime.ends()
    await harness.runtime.start(run.spec)
    await run.told("ready")
    pids = await asyncio.to_thread(processes_of, "job_1-1")
    assert len(pids) > 1
    async with asyncio.timeout(SECONDS):
        while set(await harness.runtime.owners([*pids, os.getpid()])) != set(pids):
            await asyncio.sleep(0.05)
    assert set((await harness.runtime.owners([*pids, os.getpid()])).values()) == {"job_1-1"}
    run.tell("go")
    await run.end(ends)
    assert await harness.runtime.owners([*pids, os.getpid()]) == {}


async def test_whether_gpus_may_be_opened(harness: Harness, app: Make) -> None:
    """A process of the host is kept from none; of a container that has no such devices nothing is known."""
    run = app('echo > "$OUT/ready"; read _ < "$OUT/go"', "job_1-1", "ready", "go")
    run.spec = replace(run.spec, memory=0)
    ends = harness.runtime.ends()
    await harness.runtime.start(run.spec)
    await run.told("ready")
    assert await harness.runtime.may_open_gpus("job_1-1") is (True if harness.has_gpus else None)
    run.tell("go")
    assert (await run.end(ends)).exit_code == 0


async def test_secrets_stay_with_the_server(app: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's own environment does not reach the application."""
    monkeypatch.setenv("GURNEY_S3_SECRET_KEY", "do-not-tell")
    run = app("env")
    await run.run()
    assert "do-not-tell" not in run.log()


async def test_input_and_output(app: Make) -> None:
    """The application finds the payload at its input path, and what it writes is in the output folder."""
    run = app('cp "$HOLOSCAN_INPUT_PATH/scan.dcm" "$OUT/copy.dcm"')
    (run.input / "scan.dcm").write_bytes(bytes(range(256)))
    assert (await run.run()).exit_code == 0
    assert (run.output / "copy.dcm").read_bytes() == bytes(range(256))


async def test_standard_input_is_empty(app: Make) -> None:
    """An application that reads its standard input finds the end at once."""
    assert (await app("cat").run()).exit_code == 0


async def test_log_keeps_the_order(harness: Harness, app: Make) -> None:
    """Standard output and standard error arrive in one log, each in the order of writing, and both where that shows."""
    run = app("for i in 1 2 3 4 5 6 7 8 9; do echo out$i; echo err$i >&2; done")
    await run.run()
    log, numbers = run.log().split(), range(1, 10)
    for stream in ("out", "err"):
        assert [line for line in log if line.startswith(stream)] == [f"{stream}{i}" for i in numbers]
    if harness.keeps_order_of_streams:
        assert log == [f"{stream}{i}" for i in numbers for stream in ("out", "err")]


@pytest.mark.slow
async def test_middle_of_a_long_log_takes_no_disk(app: Make) -> None:
    """An application that floods its log does not fill the disk: the middle, which nobody keeps, is a hole."""
    run = app(
        f'echo first; head -c {200 * MIB} /dev/zero; echo last; echo > "$OUT/done"; read _ < "$OUT/go"',
        "job_1-1",
        "done",
        "go",
    )
    running = asyncio.create_task(run.run())
    await run.told("done")
    log = run.harness.runtime.log_path("job_1-1")
    async with asyncio.timeout(SECONDS):
        while (found := log.stat()).st_size < 200 * MIB or found.st_blocks * 512 > 100 * MIB:
            await asyncio.sleep(0.05)
    run.tell("go")
    await running
    with log.open("rb") as file:
        assert file.read(6) == b"first\n"
        file.seek(-5, os.SEEK_END)
        assert file.read() == b"last\n"


async def test_log_may_be_opened_again(app: Make) -> None:
    """An application that opens its standard output once more, to append, overwrites nothing."""
    run = app("echo one; echo two >> /dev/stdout; echo three")
    await run.run()
    assert run.log() == "one\ntwo\nthree\n"


async def test_log_is_whole(harness: Harness, app: Make) -> None:
    """50 MB of output are in the log when the end is told, none missing, none twice."""
    run = app("seq 1000000 7250000")
    await run.run()
    with harness.runtime.log_path("job_1-1").open("rb") as log:
        for first in range(1_000_000, 7_250_001, 100_000):
            expected = b"".join(b"%d\n" % i for i in range(first, min(first + 100_000, 7_250_001)))
            assert log.read(len(expected)) == expected
        assert log.read() == b""


async def test_log_can_be_followed(harness: Harness, app: Make) -> None:
    """What was written so far can be read while the run goes on."""
    run = app('echo hello; echo > "$OUT/ready"; read _ < "$OUT/go"', "job_1-1", "ready", "go")
    await harness.runtime.start(run.spec)
    await run.told("ready")
    assert run.log() == "hello\n"
    run.tell("go")
    await run.end()


async def test_runs_run_side_by_side(harness: Harness, app: Make) -> None:
    """Two runs are alive at the same time, each with its own end and log."""
    first, second = (
        app(f'echo > "$OUT/ready"; read _ < "$OUT/go"; echo {i}; exit {i}', f"job_{i}-1", "ready", "go") for i in (1, 2)
    )
    for run in (first, second):
        await harness.runtime.start(run.spec)
    for run in (first, second):
        await run.told("ready")
    for run in (second, first):
        run.tell("go")
    assert [(await run.end()).exit_code for run in (first, second)] == [1, 2]
    assert [run.log() for run in (first, second)] == ["1\n", "2\n"]


async def test_live_run_is_adopted(harness: Harness, app: Make) -> None:
    """A run survives the server: the next one lists it as running and hears of its end with the exit code."""
    run = app('echo > "$OUT/ready"; read _ < "$OUT/go"; exit 5', "job_1-1", "ready", "go")
    await harness.runtime.start(run.spec)
    await run.told("ready")
    await harness.reopen()
    ends = harness.runtime.ends()
    observed = await run.observed()
    assert observed is not None
    assert observed.end is None
    run.tell("go")
    end = await run.end(ends)
    assert (end.cause, end.exit_code) == (Cause.EXITED, 5)


async def test_end_without_a_server_is_found(harness: Harness, app: Make) -> None:
    """A run that ends while no server is there is found ended, with its exit code."""
    run = app('echo > "$OUT/ready"; read _ < "$OUT/go"; exec 8>"$OUT/held"; exit 5', "job_1-1", "ready", "go", "held")
    await harness.runtime.start(run.spec)
    await run.told("ready")
    await harness.runtime.close()
    run.tell("go")
    await harness.reopen()
    end = await run.end()
    assert (end.cause, end.exit_code) == (Cause.EXITED, 5)


async def test_crash_of_the_resident_part(harness: Harness, app: Make) -> None:
    """A crash of what watches the runs neither ends nor repeats them; their end is told in any case."""
    run = app('echo >> "$OUT/count"; echo > "$OUT/ready"; read _ < "$OUT/go"; echo done', "job_1-1", "ready", "go")
    ends = harness.runtime.ends()
    await harness.runtime.start(run.spec)
    await run.told("ready")
    await harness.crash()
    await harness.runtime.start(run.spec)
    observed = await run.observed()
    assert observed is not None
    assert observed.end is None
    run.tell("go")
    end = await run.end(ends)
    assert end.cause in {Cause.EXITED, Cause.LOST}
    assert run.log() == "done\n"
    assert (run.output / "count").read_text() == "\n"


async def test_crash_while_nobody_asks(harness: Harness, app: Make) -> None:
    """Without any call in between, the end of a run is told after a crash of what watches it."""
    run = app('echo > "$OUT/ready"; read _ < "$OUT/go"', "job_1-1", "ready", "go")
    ends = harness.runtime.ends()
    await harness.runtime.start(run.spec)
    await run.told("ready")
    await harness.crash()
    run.tell("go")
    assert (await asyncio.wait_for(anext(ends), SECONDS)).run_id == "job_1-1"


async def test_timeout_survives_a_crash(harness: Harness, app: Make) -> None:
    """The timeout is kept, counted from the start, also for a run that was adopted after a crash."""
    run = app("trap '' TERM; echo > \"$OUT/ready\"; while :; do sleep 1; done", "job_1-1", "ready")
    run.spec = replace(run.spec, timeout_s=1.0)
    await harness.runtime.start(run.spec)
    await run.told("ready")
    await harness.crash()
    assert (await run.end()).cause == Cause.TIMEOUT


async def left_alone(harness: Harness, run: App, timeout_s: float) -> End:
    """Return the end of a run that began with this timeout, and over which there was no agent until it was over."""
    run.spec = replace(run.spec, timeout_s=timeout_s)
    await harness.runtime.start(run.spec)
    await run.told("ready")
    await harness.runtime.close()
    await asyncio.sleep(3)
    await harness.reopen()
    return await run.end()


async def test_success_after_the_timeout_is_none_where_nobody_watched(harness: Harness, app: Make) -> None:
    """A run that ends with 0 after its time was over, while there was no agent, is over its time all the same."""
    run = app('echo > "$OUT/ready"; sleep 2; exit 0', "job_1-1", "ready")
    assert (await left_alone(harness, run, 1.0)).cause == Cause.TIMEOUT


async def test_success_before_the_timeout_is_one_where_nobody_watched(harness: Harness, app: Make) -> None:
    """A run that ended with 0 in its time is a success, also for an agent that comes back when the time is over."""
    run = app('echo > "$OUT/ready"; exit 0', "job_1-1", "ready")
    assert (await left_alone(harness, run, 2.0)).cause == Cause.EXITED


async def test_memory_limit_survives_a_crash(harness: Harness, app: Make) -> None:
    """The memory limit is kept for a run that was adopted after a crash."""
    run = app(f'echo > "$OUT/ready"; read _ < "$OUT/go"; {EAT}', "job_1-1", "ready", "go", "eaten")
    run.spec = replace(run.spec, memory=50 * MIB)
    await harness.runtime.start(run.spec)
    await run.told("ready")
    await harness.crash()
    await run.observed()
    run.tell("go")
    assert (await run.end()).cause == Cause.MEMORY


async def test_stop_survives_a_crash(harness: Harness, app: Make) -> None:
    """A run that was asked to stop is killed after its grace although what watched it crashed in between."""
    run = app("trap '' TERM; echo > \"$OUT/ready\"; while :; do sleep 1; done", "job_1-1", "ready")
    await harness.runtime.start(run.spec)
    await run.told("ready")
    await harness.runtime.stop("job_1-1", GRACE_S)
    await harness.crash()
    assert (await run.end()).cause == Cause.STOPPED


WAITS = 'trap \'\' TERM; echo > "$OUT/ready"; read _ < "$OUT/go"; exit 5'


def leased(run: App, seconds: float) -> App:
    """Give a run a lease of so many seconds from now."""
    run.spec = replace(run.spec, lease_until=clock.monotonic() + seconds * run.harness.pace)
    return run


async def test_lapsed_lease_ends_a_run_that_nobody_watches(harness: Harness, app: Make) -> None:
    """A run whose lease lapses while no server is there is killed, without grace, and its cause is the lease."""
    run = leased(app(WAITS, "job_1-1", "ready", "go"), 0.8)
    await harness.runtime.start(run.spec)
    await run.told("ready")
    await harness.runtime.close()
    await until_lapsed(run)
    await harness.reopen()
    end = await run.end()
    assert end.cause == Cause.LEASE
    assert end.duration_s is not None
    assert end.duration_s < 5 * harness.pace


async def until_lapsed(run: App) -> None:
    assert run.spec.lease_until is not None
    await asyncio.sleep(max(0.0, run.spec.lease_until - clock.monotonic()) + 0.1)


async def test_renewed_lease_lets_a_run_live(harness: Harness, app: Make) -> None:
    """A run lives on when its lease is renewed in time; an earlier time takes nothing back, others are no error."""
    run = leased(app(WAITS, "job_1-1", "ready", "go"), 1.5)
    await harness.runtime.start(run.spec)
    await run.told("ready")
    await harness.runtime.lease(["job_1-1", "job_2-1"], clock.monotonic() + 60)
    await harness.runtime.lease(["job_1-1"], clock.monotonic())
    await until_lapsed(run)
    run.tell("go")
    end = await run.end()
    assert (end.cause, end.exit_code) == (Cause.EXITED, 5)


async def test_a_run_without_a_lease_may_get_one(harness: Harness, app: Make) -> None:
    """Until then it waits for nobody."""
    run = app(WAITS, "job_1-1", "ready", "go")
    await harness.runtime.start(run.spec)
    await run.told("ready")
    await harness.runtime.lease(["job_1-1"], clock.monotonic() + 0.1)
    assert (await run.end()).cause == Cause.LEASE


async def test_lapsed_lease_cannot_be_renewed(harness: Harness, app: Make) -> None:
    """What comes too late saves nothing, and a run whose lease has lapsed does not begin."""
    run = leased(app('echo > "$OUT/ready"; sleep 60', "job_1-1", "ready"), 0.5)
    await harness.runtime.start(run.spec)
    await run.told("ready")
    await until_lapsed(run)
    await harness.runtime.lease(["job_1-1"], clock.monotonic() + 60)
    assert (await run.end()).cause == Cause.LEASE
    late = leased(app('touch "$OUT/begun"', "job_2-1"), -1)
    assert (await late.run()).cause == Cause.LEASE
    assert not (late.output / "begun").exists()


@pytest.mark.parametrize("renewed", [False, True])
async def test_lease_survives_a_crash(harness: Harness, app: Make, renewed: bool) -> None:  # noqa: FBT001
    """What watches after a crash knows until when each run may live."""
    run = leased(app(WAITS, "job_1-1", "ready", "go"), 1.0)
    await harness.runtime.start(run.spec)
    await run.told("ready")
    if renewed:
        await harness.runtime.lease(["job_1-1"], clock.monotonic() + 60)
    await harness.crash()
    await until_lapsed(run)
    run.tell("go")
    assert ((await run.end()).cause == Cause.LEASE) is not renewed


@pytest.mark.parametrize("escape", ["setsid sh -c", "env -i PATH=/usr/bin:/bin setsid sh -c"])
async def test_nothing_escapes(harness: Harness, app: Make, escape: str) -> None:
    """Grandchildren that left session, parents and environment behind are gone when the end is told."""
    inner = "exec 8>$0; echo > $1; sleep 1000"
    run = app(f"""( {escape} '{inner}' "$OUT/held" "$OUT/ready" & ) & wait; sleep 1000 | read _ < "$OUT/go" """)
    run.pipe("held", "ready", "go")
    await harness.runtime.start(run.spec)
    await run.told("ready")
    run.tell("go")
    await harness.runtime.stop("job_1-1", 0.0)
    await run.end()
    assert not run.held("held")


async def test_children_do_not_outlive_the_main_process(app: Make) -> None:
    """When the main process ends by itself, what it left in the background is ended, and the exit code is its own."""
    run = app('( exec 8>"$OUT/held"; echo > "$OUT/ready"; sleep 1000 ) & read _ < "$OUT/go"; exit 6')
    run.pipe("held", "ready", "go")
    await run.harness.runtime.start(run.spec)
    await run.told("ready")
    run.tell("go")
    end = await run.end()
    assert (end.cause, end.exit_code) == (Cause.EXITED, 6)
    assert not run.held("held")


async def test_nothing_escapes_beside_another_run(harness: Harness, app: Make) -> None:
    """What a run leaves is told from what another run has, even without its environment, and that one lives on."""
    leave = (
        """exec 8>"$OUT/held"; env -i /bin/sh -c 'echo > $0; sleep 1000' "$OUT/ready" & read _ < "$OUT/go"; exit 6"""
    )
    other = app(leave, "job_1-1", "ready", "go", "held")
    run = app(leave, "job_2-1", "ready", "go", "held")
    for each in (other, run):
        await harness.runtime.start(each.spec)
        await each.told("ready")
    run.tell("go")
    assert (await run.end()).exit_code == 6
    assert not run.held("held")
    assert other.held("held")
    other.tell("go")
    assert (await other.end()).exit_code == 6


async def test_ends_are_told_once_to_everyone(harness: Harness, app: Make) -> None:
    """Everyone who listens hears of each end once, of none from before, and is let go when the runtime closes."""
    await app("exit 0", "job_0-1").run()
    listeners = [harness.runtime.ends() for _ in range(2)]
    await app("exit 0", "job_1-1").run()
    await app("exit 0", "job_2-1").run()
    await harness.reopen()
    assert [[each.run_id async for each in ends] for ends in listeners] == [["job_1-1", "job_2-1"]] * 2


async def test_forget_leaves_nothing(harness: Harness, app: Make) -> None:
    """A forgotten run is unknown, its files are gone, and its id can be used again."""
    run = app('mkdir -p "$TMPDIR/a" && chmod 500 "$TMPDIR/a"; echo >> "$OUT/count"')
    assert (await run.run()).exit_code == 0
    await harness.runtime.forget("job_1-1")
    await harness.runtime.forget("job_1-1")
    assert await harness.runtime.runs() == []
    assert not harness.runtime.log_path("job_1-1").exists()
    left = [path for path in harness.base.glob("data/**/*") if path.name.startswith("job_1-1")]
    assert left == []
    await run.run()
    assert (run.output / "count").read_text() == "\n\n"


async def test_forget_of_a_live_run_is_refused(harness: Harness, app: Make) -> None:
    """A run that has not ended cannot be forgotten."""
    run = app('echo > "$OUT/ready"; read _ < "$OUT/go"', "job_1-1", "ready", "go")
    await harness.runtime.start(run.spec)
    await run.told("ready")
    with pytest.raises(Conflict):
        await harness.runtime.forget("job_1-1")
    run.tell("go")
    assert (await run.end()).exit_code == 0


async def test_run_ids_are_checked(harness: Harness, app: Make) -> None:
    """A run id that could lead elsewhere is refused everywhere."""
    run = app("exit 0")
    with pytest.raises(Invalid):
        await harness.runtime.start(replace(run.spec, run_id="../x"))
    with pytest.raises(Invalid):
        await harness.runtime.forget("..")
    with pytest.raises(Invalid):
        harness.runtime.log_path("a/b")


async def test_inspect_pins_and_reads(harness: Harness) -> None:
    """An inspection gives the same digest each time and the raw manifests."""
    first, second = await asyncio.gather(*(harness.runtime.inspect(harness.urn) for _ in range(2)))
    assert first == second
    assert first.digest.startswith("sha256:")
    assert any(os.path.basename(path) == "app.json" for path in first.manifests)  # noqa: PTH119  paths of the MAP
    await harness.runtime.available(harness.urn, first.digest)


async def test_inspect_of_a_missing_map(harness: Harness) -> None:
    """A MAP that is not there is told as such."""
    with pytest.raises(MapUnreadable) as told:
        await harness.runtime.inspect(harness.missing_urn)
    assert told.value.reason == "not_found"
