"""How runs end: each outcome is told as what it is, and leaves nothing behind on the host."""

import os
from functools import partial
from typing import Any

import pytest

from tests.e2e import endings, work
from tests.e2e.api import Api, Json
from tests.e2e.endings import FAILURES, OUTPUTS, REJECTED, Run
from tests.e2e.servers import Server

MIB = 1024**2

CHILD_OF_400_MIB = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; held = bytearray(400 << 20); time.sleep(60)"])
time.sleep(60)
"""


async def outcome(api: Api, server: Server, folder: str, files: dict[str, str], **options: Any) -> Json:
    """Run a MAP to its end, and hold the host against what it may not have any more."""
    made = await work.register(api, folder)
    job = await work.ended(api, (await work.submit(api, made["id"], files, **options))["id"])
    await work.nothing_left(server, job["id"])
    return job


@pytest.fixture
def run(api: Api, server: Server) -> Run:
    """Runs a shell script to its end."""

    async def script_to_its_end(script: str, **options: Any) -> Json:
        return await outcome(api, server, "shell", {"run.sh": script}, **options)

    return script_to_its_end


@pytest.mark.parametrize(("folder", "code"), [("nowhere", 127), ("not-executable", 126)])
async def test_no_program(api: Api, server: Server, folder: str, code: int) -> None:
    """A command that is not found ends with 127, one that cannot be executed with 126, as in a shell."""
    job = await outcome(api, server, folder, {})
    assert (job["state"], job["reason"]["code"], job["exit_code"]) == ("failed", "exit_nonzero", code)


async def test_ignored_stop(api: Api, server: Server) -> None:
    """A run that ignores SIGTERM is ended by SIGKILL, with all that it has started."""
    job = await work.begin(api, "trap '' TERM; echo ready; (trap '' TERM; sleep 60) & while :; do sleep 0.05; done")
    await _logged(api, job, "ready")
    (await api.post(f"/v1/jobs/{job['id']}/cancel")).must(202)
    job = await work.ended(api, job["id"])
    assert (job["state"], job["reason"]["code"], job["exit_code"]) == ("canceled", "canceled", 137)
    await work.nothing_left(server, job["id"])


async def test_obeyed_stop(api: Api, server: Server) -> None:
    """A run that heeds SIGTERM gets the time to say goodbye."""
    job = await work.begin(api, "trap 'echo goodbye; exit 0' TERM; sleep 60 & echo ready; wait")
    await _logged(api, job, "ready")
    (await api.post(f"/v1/jobs/{job['id']}/cancel")).must(202)
    job = await work.ended(api, job["id"])
    assert (job["state"], await work.log(api, job)) == ("canceled", "ready\ngoodbye\n")
    await work.nothing_left(server, job["id"])


async def test_timeout_of_the_manifest(api: Api, server: Server) -> None:
    """The manifest's timeout holds where the job says none."""
    job = await outcome(api, server, "brief", {"run.sh": "sleep 30"})
    assert (job["state"], job["reason"]["code"], job["timeout_s"]) == ("failed", "timeout", 0.3)


async def test_a_job_without_a_timeout(api: Api, server: Server) -> None:
    """A job that asks for no timeout has none, whatever its MAP says."""
    job = await outcome(api, server, "brief", {"run.sh": "sleep 0.6"}, timeout_s=0)
    assert (job["state"], job["timeout_s"]) == ("succeeded", 0)


@pytest.mark.parametrize("name", FAILURES)
async def test_failures(api: Api, run: Run, name: str) -> None:
    """Each way to fail is told as what it is, with the end of the log, and keeps what was written as partial."""
    await endings.check_failure(api, run, name)


@pytest.mark.parametrize("name", OUTPUTS)
async def test_outputs(api: Api, run: Run, name: str) -> None:
    """What an application may write comes home as it wrote it."""
    await endings.check_output(api, run, name)


@pytest.mark.slow
async def test_many_files(api: Api, run: Run) -> None:
    """5,000 files in folders all come home, each with its content."""
    await endings.check_many(api, run)


@pytest.mark.parametrize(
    "making",
    [
        *(pytest.param(making, id=name) for name, making in REJECTED.items()),
        pytest.param(
            """cd "$OUT"; python -c 'import socket; socket.socket(socket.AF_UNIX).bind("bad")'""", id="socket"
        ),
        pytest.param(
            'mknod "$OUT/bad" c 1 3',
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices"),
            id="device",
        ),
    ],
)
async def test_rejected_output(api: Api, run: Run, making: str) -> None:
    """What is neither file nor folder, or leads out of the output, fails the job."""
    await endings.check_rejected(api, partial(run, resources={"memory": 64 * MIB}), making)


@pytest.mark.slow
async def test_long_log(api: Api, server: Server) -> None:
    """50 MB of log are kept whole, and a job's list of last lines stays small."""
    job = await outcome(api, server, "shell", {"run.sh": "yes 'a line of the log' | head -c 50000000"})
    assert (job["state"], job["logs"][0]["bytes"]) == ("succeeded", 50_000_000)
    kept = (await api.get(f"/v1/jobs/{job['id']}/logs")).must(200).body
    assert len(kept) == 50_000_000
    assert kept.count(b"a line of the log\n") == 50_000_000 // 18
    assert len(job["log_tail"]) <= 100


async def test_log_that_is_no_text(api: Api, server: Server) -> None:
    """Bytes that are no UTF-8 neither break the job nor what is told of it."""
    job = await outcome(api, server, "shell", {"run.sh": "printf 'a\\377\\000b\\n'"})
    assert job["state"] == "succeeded"
    assert (await api.get(f"/v1/jobs/{job['id']}/logs")).must(200).body == b"a\xff\0b\n"


async def test_out_of_memory(api: Api, server: Server) -> None:
    """A run past its memory is killed and told as `oom_killed`, the memory of its children counted in."""
    job = await outcome(api, server, "python", {"run.py": CHILD_OF_400_MIB})
    assert (job["state"], job["reason"]["code"]) == ("failed", "oom_killed")


async def test_children_end_with_their_run(api: Api, server: Server) -> None:
    """Processes that a run leaves behind end with it, also those in a session of their own."""
    job = await outcome(api, server, "shell", {"run.sh": "sleep 300 & setsid sleep 300 & exit 0"})
    assert job["state"] == "succeeded"


async def _logged(api: Api, job: Json, text: str) -> None:
    """Wait until a line is in the log of a run: then it has done what comes before."""
    async with api.events(f"/v1/jobs/{job['id']}/logs?follow=true") as events:
        async for event in events:
            if text in event.data.get("text", ""):
                return
    raise AssertionError("the run has ended")
