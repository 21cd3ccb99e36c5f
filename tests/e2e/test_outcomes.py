"""How runs end: each outcome is told as what it is, and leaves nothing behind on the host."""

import os
from typing import Any

import pytest

from tests.e2e import work
from tests.e2e.api import Api, Json
from tests.e2e.servers import Server

OUT = "$HOLOSCAN_OUTPUT_PATH"
MIB = 1024**2

MANY_FILES = """
import os, pathlib
for number in range(5000):
    folder = pathlib.Path(os.environ["HOLOSCAN_OUTPUT_PATH"], str(number % 50))
    folder.mkdir(exist_ok=True)
    (folder / str(number)).write_text(str(number))
"""
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


@pytest.mark.parametrize(("folder", "code"), [("nowhere", 127), ("not-executable", 126)])
async def test_no_program(api: Api, server: Server, folder: str, code: int) -> None:
    """A command that is not found ends with 127, one that cannot be executed with 126, as in a shell."""
    job = await outcome(api, server, folder, {})
    assert (job["state"], job["reason"]["code"], job["exit_code"]) == ("failed", "exit_nonzero", code)


async def test_exit_code(api: Api, server: Server) -> None:
    """An exit code that is not 0 fails the job, and what was written is kept as partial results."""
    job = await outcome(api, server, "shell", {"run.sh": f"echo half > {OUT}/half; exit 7"})
    assert (job["state"], job["reason"]["code"], job["exit_code"]) == ("failed", "exit_nonzero", 7)
    assert (await api.get(f"/v1/payloads/{job['results']}")).json["partial"] is True
    assert await work.result(api, job, "half") == b"half\n"


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


@pytest.mark.parametrize("first", ["true", "trap '' TERM"], ids=["obeys", "ignores"])
async def test_timeout(api: Api, server: Server, first: str) -> None:
    """A run past its time is ended, also when it ignores SIGTERM."""
    script = f"{first}; echo begun; while :; do sleep 0.05; done"
    job = await outcome(api, server, "shell", {"run.sh": script}, timeout_s=0.4)
    assert (job["state"], job["reason"]["code"]) == ("failed", "timeout")
    assert await work.log(api, job) == "begun\n"


async def test_timeout_of_the_manifest(api: Api, server: Server) -> None:
    """The manifest's timeout holds where the job says none."""
    job = await outcome(api, server, "brief", {"run.sh": "sleep 30"})
    assert (job["state"], job["reason"]["code"], job["timeout_s"]) == ("failed", "timeout", 0.3)


async def test_exception_told_in_the_metadata(api: Api, server: Server) -> None:
    """An application that writes down why it failed has failed, whatever it ends with; what it wrote is kept."""
    script = """echo '{"exception": "no lungs found"}' > "$HOLOSCAN_OUTPUT_PATH/metadata.json" """
    job = await outcome(api, server, "shell", {"run.sh": script})
    assert (job["state"], job["reason"]) == ("failed", {"code": "exception", "message": "no lungs found"})
    assert (job["exit_code"], job["metadata"]) == (0, {"exception": "no lungs found"})
    assert set(await work.results(api, job)) == {"metadata.json"}


async def test_nothing_written(api: Api, server: Server) -> None:
    """A run that writes nothing succeeds; its results are an empty archive."""
    job = await outcome(api, server, "shell", {"run.sh": "true"})
    assert (job["state"], await work.results(api, job)) == ("succeeded", {})
    (await api.get(f"/v1/jobs/{job['id']}/results")).must(200)
    (await api.get(f"/v1/jobs/{job['id']}/results/x", case="no results")).must(404)
    assert await work.log(api, job) == ""


@pytest.mark.slow
async def test_many_files(api: Api, server: Server) -> None:
    """5,000 files in folders all come home, each with its content."""
    job = await outcome(api, server, "python", {"run.py": MANY_FILES})
    assert job["state"] == "succeeded"
    files = await work.results(api, job)
    assert files.keys() == {f"{n % 50}/{n}" for n in range(5000)}
    assert await work.result(api, job, "49/4999") == b"4999"
    assert (await api.get(f"/v1/payloads/{job['results']}")).json["files"] == 5000


@pytest.mark.parametrize(
    "making",
    [
        f"ln -s /etc/hostname {OUT}/bad",
        f"ln -s ../../.. {OUT}/bad",
        f"ln -s nothing {OUT}/bad",
        f"mkfifo {OUT}/bad",
        f"cd {OUT}; python -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"bad\")'",
        pytest.param(
            f"mknod {OUT}/bad c 1 3",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices"),
        ),
    ],
    ids=["link-out", "link-up", "link-to-nothing", "fifo", "socket", "device"],
)
async def test_rejected_output(api: Api, server: Server, making: str) -> None:
    """What is neither file nor folder, or leads out of the output, fails the job; regular files are kept as partial."""
    script = f"set -e; echo good > {OUT}/good; {making}"
    options = {"resources": {"memory": 64 * MIB}}
    job = await outcome(api, server, "shell", {"run.sh": script}, **options)
    assert (job["state"], job["reason"]["code"], job["exit_code"]) == ("failed", "output_rejected", 0), job["log_tail"]
    assert "bad" in job["reason"]["message"]
    assert (await work.results(api, job)).keys() == {"good"}
    assert (await api.get(f"/v1/payloads/{job['results']}")).json["partial"] is True


async def test_link_inside(api: Api, server: Server) -> None:
    """A link that stays inside the output is stored as a copy of what it leads to."""
    script = f"cd {OUT}; mkdir d; echo one > d/f; ln -s d/f link; ln -s d also"
    job = await outcome(api, server, "shell", {"run.sh": script})
    assert job["state"] == "succeeded"
    files = await work.results(api, job)
    assert files.keys() == {"d/f", "link", "also/f"}
    assert len({file["sha256"] for file in files.values()}) == 1


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
