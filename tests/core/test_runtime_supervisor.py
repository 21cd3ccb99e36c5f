"""The supervisor of the process runtime as a process: one only, small, gone when idle; and what it takes as lost."""

import asyncio
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from gurney.errors import ImageUnavailable, Unavailable
from gurney.runtime import folder
from gurney.runtime.link import SupervisorLink
from gurney.runtime.port import Cause
from gurney.runtime.supervisor import launch, procfs, records
from gurney.runtime.supervisor import main as supervisor
from tests.contract.runtime_harness import SECONDS, App, ProcessHarness, gone, kill

WAIT = 'echo > "$OUT/ready"; read _ < "$OUT/go"'


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[ProcessHarness]:
    """An open process runtime; whatever was started through it is ended."""
    made = ProcessHarness(tmp_path)
    await made.open()
    yield made
    await made.finish()


@pytest.fixture
async def app(harness: ProcessHarness) -> AsyncIterator[App]:
    """An application that says when it is ready and waits until it may go."""
    digest = (await harness.runtime.inspect(harness.urn)).digest
    made = App(harness, digest, WAIT, "job_1-1")
    made.pipe("ready", "go")
    yield made
    made.close()


def supervisors(data: Path) -> list[int]:
    """Return the processes that were started for a data folder."""
    found = psutil.process_iter(["cmdline"])  # others may end meanwhile
    return [each.pid for each in found if any(str(data) in word for word in each.info["cmdline"] or ())]


def processes_of(data: Path) -> list[int]:
    """Return the live processes of runs of a data folder."""
    variable = os.fsencode(f"{records.FOLDER_VARIABLE}={data}/runtime/runs/job_1-1")
    return [pid for pid in procfs.pids() if procfs.has_variable(pid, variable) and procfs.ticks(pid)]


async def test_one_supervisor_for_all(harness: ProcessHarness) -> None:
    """Runtimes that open the same data folder at the same time find the same supervisor."""
    await harness.runtime.close()
    await gone(harness.supervisor())
    others = [harness.make() for _ in range(3)]
    await asyncio.gather(*(other.open() for other in others))
    await harness.runtime.open()
    assert await asyncio.to_thread(supervisors, harness.data) == [harness.supervisor()]
    for other in others:
        await other.close()


def test_second_supervisor_gives_way(tmp_path: Path) -> None:
    """A supervisor that finds the folder taken says so by its exit code and changes nothing."""
    command = [sys.executable, "-I", "-S", supervisor.__file__, str(tmp_path), str(SECONDS)]
    assert subprocess.run(command, check=False).returncode == 0
    pid = (tmp_path / "supervisor.pid").read_text()
    assert subprocess.run(command, check=False).returncode == supervisor.TAKEN
    assert (tmp_path / "supervisor.pid").read_text() == pid
    asyncio.run(kill(int(pid), signal.SIGTERM))


async def test_supervisor_goes_when_idle(harness: ProcessHarness) -> None:
    """With neither client nor run the supervisor ends by itself and takes its socket along."""
    pid = harness.supervisor()
    await harness.runtime.close()
    await gone(pid)
    assert not (harness.data / "runtime" / "supervisor.sock").exists()
    await harness.runtime.open()


async def test_run_keeps_the_supervisor(harness: ProcessHarness, app: App) -> None:
    """A live run keeps the supervisor, also when it is told to end; it goes after the last run."""
    await harness.runtime.start(app.spec)
    await app.told("ready")
    pid = harness.supervisor()
    os.kill(pid, signal.SIGTERM)
    ends = harness.runtime.ends()
    app.tell("go")
    assert (await app.end(ends)).exit_code == 0
    await gone(pid)


async def test_supervisor_goes_with_its_folder(harness: ProcessHarness) -> None:
    """Where the data folder is removed, the supervisor ends the runs, whatever they left, and itself."""
    digest = (await harness.runtime.inspect(harness.urn)).digest
    app = App(harness, digest, f"setsid sh -c 'exec sleep 300' & {WAIT}", "job_1-1")
    app.pipe("ready", "go")
    await harness.runtime.start(app.spec)
    await app.told("ready")
    pid = harness.supervisor()
    await asyncio.to_thread(shutil.rmtree, harness.data)
    await harness.runtime.close()
    await gone(pid)
    assert await asyncio.to_thread(processes_of, harness.data) == []
    app.close()
    await harness.open()


def test_a_folder_that_is_gone_costs_no_socket(tmp_path: Path) -> None:
    """Who looks for the supervisor of a folder that was removed leaves nothing open."""
    link = SupervisorLink(tmp_path / "gone", lambda _: None, idle_s=SECONDS, answer_s=SECONDS)
    with pytest.raises(FileNotFoundError):
        link._dial()
    gc.collect()  # a socket that nobody closed would fail the test


async def test_supervisor_is_small(harness: ProcessHarness, app: App) -> None:
    """The resident process imports nothing heavy and stays below 13 MB."""
    await app.harness.runtime.start(app.spec)
    await app.told("ready")
    assert await asyncio.to_thread(procfs.resident, harness.supervisor()) < 13_000_000
    code = "import sys; sys.path.append(sys.argv[1]); import gurney.runtime.supervisor.server; print(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", code, str(Path(folder.__file__).parents[2])]
    told = await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    assert not {"asyncio", "pydantic", "typing", "pathlib", "subprocess", "datetime"} & set(
        told.stdout.decode().split()
    )


async def test_files_are_private(harness: ProcessHarness) -> None:
    """Nobody else can look into the folder of the runs or reach the socket; the supervisor inherits no secrets."""
    assert (harness.data / "runtime").stat().st_mode & 0o077 == 0
    inherited = await asyncio.to_thread(Path(f"/proc/{harness.supervisor()}/environ").read_bytes)
    assert inherited == b""


async def test_data_folder_may_be_deep(tmp_path: Path) -> None:
    """A data folder whose path is longer than a socket's may be works as any other."""
    deep = ProcessHarness(tmp_path / ("x" * 100) / ("y" * 100))
    await deep.open()
    assert await deep.runtime.runs() == []
    await deep.finish()


async def test_unknown_exit_code_is_lost(harness: ProcessHarness, app: App) -> None:
    """A run that was adopted after a crash ends as `lost`: nobody knows its exit code, but its times are known."""
    ends = harness.runtime.ends()
    await harness.runtime.start(app.spec)
    await app.told("ready")
    await harness.crash()
    await app.observed()
    app.tell("go")
    end = await app.end(ends)
    assert (end.cause, end.exit_code) == (Cause.LOST, None)
    assert end.stopped_at is not None
    assert end.duration_s is not None


async def test_mark_without_process_is_lost(harness: ProcessHarness, app: App) -> None:
    """A mark with neither process nor end is `lost`, told once, and the run does not start again."""
    await harness.runtime.start(app.spec)
    await app.told("ready")
    main = await asyncio.to_thread(procfs.children, harness.supervisor())
    await harness.runtime.close()
    await harness.crash()
    for pid in main:
        await kill(pid, signal.SIGKILL)
    await harness.runtime.open()
    end = await app.run()
    assert (end.cause, end.exit_code, end.stopped_at) == (Cause.LOST, None, None)
    assert end.started_at is not None


def test_mark_is_exclusive(tmp_path: Path) -> None:
    """The second mark of a run is refused and leaves the first one as it was, and no draft stays behind."""
    records.mark(str(tmp_path), {"pid": 1})
    with pytest.raises(FileExistsError):
        records.mark(str(tmp_path), {"pid": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["started"]
    assert json.loads((tmp_path / "started").read_text()) == {"pid": 1}


def test_who_finds_the_mark_does_not_execute(tmp_path: Path) -> None:
    """A forked process that finds the mark, made by somebody else since the fork, says so and ends."""
    records.mark(str(tmp_path), {"pid": 1})
    code = "import json, sys; from gurney.runtime.supervisor import launch; launch.become(*json.loads(sys.argv[1]))"
    ours, theirs = os.pipe()
    ask = {"argv": ["touch", str(tmp_path / "executed")], "env": dict(os.environ), "cwd": "/"}
    arguments = json.dumps([str(tmp_path), ask, {"cpus": []}, theirs])
    done = subprocess.run([sys.executable, "-c", code, arguments], pass_fds=[theirs], check=False)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        assert (done.returncode, pipe.read()) == (0, launch.MARKED)
    assert not (tmp_path / "executed").exists()


async def test_closed_runtime_answers_at_once(harness: ProcessHarness) -> None:
    """A question to a runtime that was closed, or is being closed, is refused instead of waiting for an answer."""
    asking = asyncio.gather(*(harness.runtime.runs() for _ in range(3)), return_exceptions=True)
    await harness.runtime.close()
    assert {type(told) for told in await asking} <= {list, Unavailable}
    with pytest.raises(Unavailable):
        await asyncio.wait_for(harness.runtime.runs(), SECONDS / 3)
    await harness.runtime.open()


async def test_end_that_nobody_saw_is_told(harness: ProcessHarness, app: App) -> None:
    """A run that ends together with its supervisor is told to those who listen as soon as the next one looks."""
    ends = harness.runtime.ends()
    await harness.runtime.start(app.spec)
    await app.told("ready")
    pid = harness.supervisor()
    main = await asyncio.to_thread(procfs.children, pid)
    os.kill(pid, signal.SIGSTOP)
    app.tell("go")
    await gone(main[0])
    await harness.crash()
    observed = await asyncio.wait_for(anext(ends), SECONDS)
    assert observed.end is not None
    assert observed.end.cause == Cause.LOST


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1, "ticks": 0, "boot": "other"}'])
@pytest.mark.usefixtures("harness")
async def test_broken_or_foreign_mark_is_lost(app: App, tmp_path: Path, content: str) -> None:
    """A mark that cannot be read, or was made before the host was started, is `lost`, and the run does not start."""
    run = tmp_path / "data" / "runtime" / "runs" / "job_1-1"
    run.mkdir()
    (run / "started").write_text(content)
    assert (await app.run()).cause == Cause.LOST
    assert not (run / "log").exists()


async def test_left_processes_of_the_lost_are_killed(harness: ProcessHarness, app: App) -> None:
    """Where only the main process of a run is gone, its other processes are ended before `lost` is told."""
    script = '( exec 8>"$OUT/held"; echo > "$OUT/ready"; sleep 1000 ) & wait'
    app.pipe("held")
    app.spec = replace(app.spec, command=("sh", "-c", f"OUT=$HOLOSCAN_OUTPUT_PATH; {script}"))
    await harness.runtime.start(app.spec)
    await app.told("ready")
    main = await asyncio.to_thread(procfs.children, harness.supervisor())
    await harness.runtime.close()
    await harness.crash()
    for pid in main:
        await kill(pid, signal.SIGKILL)
    await harness.runtime.open()
    assert (await app.end()).cause == Cause.LOST
    assert not app.held("held")


async def test_runs_of_other_servers_are_left_alone(harness: ProcessHarness, app: App, tmp_path: Path) -> None:
    """A run of the same id under another data folder lives on when ours, adopted after a crash, has ended."""
    theirs = ProcessHarness(tmp_path / "other")
    await theirs.open()
    digest = (await theirs.runtime.inspect(theirs.urn)).digest
    other = App(theirs, digest, WAIT, "job_1-1")
    other.pipe("ready", "go")
    for each in (app, other):
        await each.harness.runtime.start(each.spec)
        await each.told("ready")
    ends = harness.runtime.ends()
    await harness.crash()
    await harness.runtime.stop("job_1-1", 0.0)
    assert (await app.end(ends)).cause == Cause.STOPPED
    other.tell("go")
    assert (await other.end()).exit_code == 0
    other.close()
    await theirs.finish()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor cannot be divided")
async def test_whole_processors_are_pinned(harness: ProcessHarness, app: App) -> None:
    """A run that asks for one processor of several gets one, and one that asks for half may use all."""
    show = "import os; print(len(os.sched_getaffinity(0)))"
    counts = []
    for number, cpu in enumerate((1.0, 0.5)):
        spec = replace(app.spec, run_id=f"job_{number}-1", cpu=cpu, command=("python3", "-c", show))
        ends = harness.runtime.ends()
        await harness.runtime.start(spec)
        await asyncio.wait_for(anext(ends), SECONDS)
        counts.append(int(harness.runtime.log_path(spec.run_id).read_text()))
    assert counts == [1, len(os.sched_getaffinity(0))]


async def test_python_of_the_server_runs_folder_maps(harness: ProcessHarness, app: App) -> None:
    """`python3` is the server's, the working directory the MAP's copy, the temporary folder the run's own."""
    show = "import os, sys, tempfile; print(sys.prefix, os.getcwd(), tempfile.gettempdir(), sep='\\n')"
    app.spec = replace(app.spec, command=("python3", "-c", show))
    await app.run()
    copy = folder.copy_path(harness.data / "maps", app.spec.digest)
    temporary = harness.data / "runtime" / "runs" / "job_1-1" / "tmp"
    assert app.log().splitlines() == [sys.prefix, str(copy), str(temporary)]


async def test_missing_copy_does_not_begin(app: App) -> None:
    """Without the copy of the MAP there is no run, and the message names what is missing."""
    app.spec = replace(app.spec, digest="sha256:" + "0" * 64)
    end = await app.run()
    assert end.cause == Cause.NOT_STARTED
    assert "0000" in end.message


async def test_copy_is_made_again(harness: ProcessHarness, app: App) -> None:
    """A copy that is gone comes back from its folder, unless that has changed or is gone, too."""
    copy = folder.copy_path(harness.data / "maps", app.spec.digest)
    await asyncio.to_thread(folder.remove_tree, copy)
    await harness.runtime.available(harness.urn, app.spec.digest)
    assert copy.is_dir()
    await asyncio.to_thread(folder.remove_tree, copy)
    (harness.maps / "app" / "plain").write_text("changed\n")
    with pytest.raises(ImageUnavailable, match="changed"):
        await harness.runtime.available(harness.urn, app.spec.digest)
    await asyncio.to_thread(folder.remove_tree, harness.maps / "app")
    with pytest.raises(ImageUnavailable, match="gone"):
        await harness.runtime.available(harness.urn, app.spec.digest)


async def test_end_waits_for_room_on_the_disk(harness: ProcessHarness, app: App) -> None:
    """An end that cannot be written is told at once, listed, and written when there is room again."""
    run = harness.data / "runtime" / "runs" / "job_1-1"
    await harness.runtime.start(app.spec)
    await app.told("ready")
    (run / "end.tmp").mkdir()  # in the way of the file
    app.tell("go")
    assert (await app.end()).exit_code == 0
    assert not (run / "end.json").exists()
    (run / "end.tmp").rmdir()
    async with asyncio.timeout(SECONDS):
        while not (run / "end.json").exists():
            await harness.runtime.runs()
    assert (await app.end()).exit_code == 0


async def test_supervisor_that_cannot_start_is_unavailable(tmp_path: Path) -> None:
    """Where the supervisor cannot start the runtime says so, and where to look."""
    harness = ProcessHarness(tmp_path)
    (harness.data / "runtime" / "supervisor.lock").mkdir(parents=True)
    with pytest.raises(Unavailable, match=r"supervisor\.log"):
        await harness.runtime.open()
    await harness.runtime.close()


async def test_bad_request_does_not_end_the_watch(harness: ProcessHarness) -> None:
    """A request that the supervisor cannot understand is refused, and it goes on."""
    pid = harness.supervisor()
    reader, writer = await asyncio.open_unix_connection(f"/proc/{pid}/cwd/supervisor.sock")
    for line in (b"nonsense\n", b'{"id": 1, "do": "dance"}\n', b'{"id": 2, "do": "list"}\n'):
        writer.write(line)
    answers = [json.loads(await reader.readline()) for _ in range(4)]
    assert [answer.get("id") for answer in answers] == [None, None, 1, 2]
    assert "dance" in answers[2]["error"]
    assert answers[3]["ok"]
    writer.close()
    await writer.wait_closed()
    assert harness.supervisor() == pid


async def test_trouble_does_not_end_the_watch(harness: ProcessHarness, app: App) -> None:
    """Trouble of the host, here a folder that is away, does not make the supervisor let go of its runs."""
    await harness.runtime.start(app.spec)
    await app.told("ready")
    pid = harness.supervisor()
    runs = harness.data / "runtime" / "runs"
    runs.rename(runs.with_name("away"))
    reader, writer = await asyncio.open_unix_connection(f"/proc/{pid}/cwd/supervisor.sock")
    writer.write(b'{"id": 1, "do": "list"}\n')
    assert "error" in json.loads(await reader.readline())
    runs.with_name("away").rename(runs)
    app.tell("go")
    assert (await app.end()).exit_code == 0
    assert harness.supervisor() == pid
    writer.close()
    await writer.wait_closed()
