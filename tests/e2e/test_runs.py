"""`POST /v1/run/{map}`: a zip in, the results out, and nothing of either stays."""

import asyncio
import contextlib
import io
import os
import tarfile
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gurney.client import AsyncClient
from gurney.errors import RunFailed, RunTimedOut
from gurney.testing.embedded import EmbeddedProcess
from tests.e2e import work
from tests.e2e.api import Answer, Api, Json
from tests.e2e.conftest import ENVIRONMENT
from tests.e2e.servers import Server
from tests.e2e.zips import COPY, MARK, packed, unpacked

ZIP = "application/zip"
SLEEP = f"""
echo "{MARK}"; echo "{MARK}" > "$HOLOSCAN_OUTPUT_PATH/half"
sleep 60
"""


async def run(api: Api, body: bytes, query: str = "", ref: str = "shell", **headers: str) -> Answer:
    return await api.post(f"/v1/run/{ref}{query}", data=body, headers={"Content-Type": ZIP, **headers})


async def jobs(api: Api) -> list[Json]:
    return await api.all("/v1/jobs")


async def only_job(api: Api, holds: Any = lambda _: True) -> Json:
    """Return the one job that there is, once something holds of it."""
    async with asyncio.timeout(work.PATIENCE_S):
        while not (found := await jobs(api)):
            await asyncio.sleep(0.01)
    (job,) = found
    return await work.until(api, job["id"], holds)


async def nothing_stays(api: Api, server: Server) -> None:
    """Hold what there is of all jobs and payloads against the promise: a record without data."""
    for found in await jobs(api):
        job = (await api.get(f"/v1/jobs/{found['id']}")).must(200).json
        assert job["transient"], job
        assert (job["results"], job["logs"], job["log_tail"], job["metadata"]) == (None, [], [], None), job
        assert MARK not in str(job)
        assert MARK not in (await api.get(f"/v1/jobs/{job['id']}/story")).body.decode()
        assert (await api.get(f"/v1/jobs/{job['id']}/logs")).body == b""
        (await api.get(f"/v1/payloads/{job['payload']}", case="went with its run")).must(404)
        await work.nothing_left(server, job["id"])
    for state in ("open", "draft"):
        assert await api.all(f"/v1/payloads?state={state}") == []
    await unmarked(server)


async def unmarked(server: Server) -> None:
    """Wait until nothing of the data is on any disk: the database erases names a second after they went."""
    async with asyncio.timeout(work.PATIENCE_S):
        while await asyncio.to_thread(marked, server.data):
            await asyncio.sleep(0.05)


def marked(data: Path) -> list[Path]:
    """Return the files below a folder that have the mark anywhere in them, and those whose names do.

    What MinIO has deleted it empties itself, some minutes later; MongoDB's own files have names for longer.
    """
    found = []
    for folder, folders, names in os.walk(data):
        folders[:] = [each for each in folders if each not in {".trash", "mongo"}]
        for path in (Path(folder, name) for name in names):
            with contextlib.suppress(OSError):
                if MARK in path.name or (path.is_file() and MARK.encode() in path.read_bytes()):
                    found.append(path)
    return found


@pytest.fixture
async def runner(api: Api) -> Api:
    """A developer with a MAP that does what its input says, by its name."""
    await work.register(api, "shell", name="shell")
    return api


# --- what it answers ---


async def test_a_zip_goes_in_and_the_results_come_out(runner: Api, server: Server) -> None:
    """The answer has every file and empty folder of the output; nothing of it, of the input or the log stays."""
    answer = (await run(runner, packed())).must(200)
    assert answer.headers["Content-Type"] == ZIP
    expected = {"out/a.dcm": MARK.encode(), f"out/{MARK}/Müller.dcm": (MARK * 9).encode(), "empty/inner/": b""}
    assert unpacked(answer.body) == expected
    (job,) = await jobs(runner)
    assert (job["state"], job["map"]["name"], job["admission"]) == ("succeeded", "shell", "reject")
    assert job["finalized_at"]
    await nothing_stays(runner, server)
    (await runner.get(f"/v1/jobs/{job['id']}/results", case="went with the answer")).must(404)


async def test_the_data_are_gone_when_the_answer_ends(runner: Api) -> None:
    """Who has read the last byte finds no payload any more, without waiting."""
    for script in (COPY, "exit 3"):
        await run(runner, packed(script))
        assert (await runner.get("/v1/payloads")).items == []
        assert all(job["finalized_at"] and not job["results"] for job in (await runner.get("/v1/jobs")).items)


async def test_it_takes_what_a_job_takes(runner: Api) -> None:
    """The query says what the body of a job says otherwise."""
    query = "?name=mine&label=a=b&priority=higher&timeout_s=7&cpu=0.5&memory=33554432&admission=queue"
    (await run(runner, packed(), query)).must(200)
    (job,) = await jobs(runner)
    assert (job["name"], job["labels"], job["priority"], job["timeout_s"]) == ("mine", {"a": "b"}, "higher", 7)
    assert (job["resources"]["cpu"], job["resources"]["memory"], job["admission"]) == (0.5, 33554432, "queue")


async def test_a_client_may_not_wait(runner: Api) -> None:
    """With respond-async it is a job as any other, whose data stay."""
    body = packed(COPY.replace(MARK, "kept"), {"in/a.dcm": "kept"})
    answer = (await run(runner, body, Prefer="respond-async")).must(202)
    assert (answer.headers["Location"], answer.headers["Preference-Applied"]) == (
        f"/v1/jobs/{answer.json['id']}",
        "respond-async",
    )
    job = await work.ended(runner, answer.json["id"])
    assert (job["state"], job["transient"]) == ("succeeded", False)
    assert await work.result(runner, job, "out/a.dcm") == b"kept"
    assert "kept" in await work.log(runner, job)


@pytest.mark.parametrize("way", ["exits", "says-so", "is-rejected"])
async def test_a_failure_is_told_with_the_job(runner: Api, server: Server, way: str) -> None:
    """A MAP that fails is a 500 that names the job, the reason and the exit code, and nothing of what it wrote."""
    scripts = {
        "exits": (f"echo {MARK} >&2; exit 7", "exit_nonzero", 7),
        "says-so": (f"""echo '{{"exception": "{MARK}"}}' > "$HOLOSCAN_OUTPUT_PATH/metadata.json" """, "exception", 0),
        "is-rejected": (f'ln -s /etc/x "$HOLOSCAN_OUTPUT_PATH/{MARK}"', "output_rejected", 0),
    }
    script, reason, code = scripts[way]
    problem = (await run(runner, packed(script))).must(500, "run_failed").json
    (job,) = await jobs(runner)
    assert (problem["job"], problem["reason"], problem["exit_code"]) == (job["id"], reason, code)
    assert MARK not in str(problem)
    await nothing_stays(runner, server)


async def test_a_run_that_takes_too_long_is_stopped(runner: Api, server: Server) -> None:
    """Past the job's timeout, and past the time that the client waits, the answer is a 504 and the run is gone."""
    for query, headers, state in (("?timeout_s=0.5", {}, "failed"), ("", {"Prefer": "wait=1"}, "canceled")):
        problem = (await run(runner, packed(SLEEP), query, **headers)).must(504, "timed_out").json
        job = (await runner.get(f"/v1/jobs/{problem['job']}")).must(200).json
        assert job["state"] == state
        await nothing_stays(runner, server)


async def test_a_canceled_run_is_told_as_such(runner: Api, server: Server) -> None:
    """Who cancels the job of a run ends the wait for it."""
    answer = asyncio.create_task(run(runner, packed(SLEEP)))
    job = await only_job(runner, lambda found: found["state"] == "running")
    await runner.post(f"/v1/jobs/{job['id']}/cancel")
    problem = (await answer).must(500, "run_failed").json
    assert (problem["job"], problem["reason"]) == (job["id"], "canceled")
    await nothing_stays(runner, server)


async def test_the_results_may_lie_in_a_folder(runner: Api) -> None:
    """The query names a folder for them; one that leaves the archive is refused."""
    answer = (await run(runner, packed(), "?folder=output")).must(200)
    assert set(unpacked(answer.body)) == {"output/out/a.dcm", f"output/out/{MARK}/Müller.dcm", "output/empty/inner/"}
    for folder in ("..", "/etc", "a//b"):
        (await run(runner, packed(), f"?folder={folder}")).must(422)


async def test_the_client_runs(runner: Api, tmp_path: Path) -> None:
    """It sends a local zip and writes that of the results; of a failure it tells the job, and leaves no file."""
    archive, into = tmp_path / "in.zip", tmp_path / "out.zip"
    await asyncio.to_thread(archive.write_bytes, packed())
    async with AsyncClient(runner.url, runner.token) as gurney:
        assert await gurney.runs.run("shell", archive, into, label={"a": "b"}, timeout_s=30) == into
        assert set(unpacked(into.read_bytes())) == {"out/a.dcm", f"out/{MARK}/Müller.dcm", "empty/inner/"}
        await asyncio.to_thread(archive.write_bytes, packed("exit 5"))
        with pytest.raises(RunFailed) as failed:
            await gurney.runs.run("shell", archive, tmp_path / "none.zip")
        await asyncio.to_thread(archive.write_bytes, packed(SLEEP))
        with pytest.raises(RunTimedOut):
            await gurney.runs.run("shell", archive, tmp_path / "none.zip", wait_s=1)
    assert (failed.value.reason, failed.value.exit_code) == ("exit_nonzero", 5)
    assert failed.value.job in {job["id"] for job in await jobs(runner)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.zip", "out.zip"]


# --- room ---


async def test_without_room_it_is_refused_unless_it_may_wait(runner: Api, server: Server) -> None:
    """A full cluster refuses with 503 and leaves nothing; `admission=queue` waits for room."""
    holder = await work.begin(runner, "sleep 60", resources={"cpu": 2})
    (await run(runner, packed(), "?cpu=1")).must(503, "no_room")
    assert [job["id"] for job in await jobs(runner)] == [holder["id"]]
    assert [each["id"] for each in await runner.all("/v1/payloads")] == [holder["payload"]]
    waiting = asyncio.create_task(run(runner, packed(), "?cpu=1&admission=queue&name=waits"))
    async with asyncio.timeout(work.PATIENCE_S):
        while not [job for job in await jobs(runner) if job["name"] == "waits"]:
            assert not waiting.done()
    await runner.post(f"/v1/jobs/{holder['id']}/cancel")
    (await waiting).must(200)
    await work.ended(runner, holder["id"])
    (await runner.delete(f"/v1/jobs/{holder['id']}")).must(204)
    (await runner.delete(f"/v1/payloads/{holder['payload']}")).must(204)
    await nothing_stays(runner, server)


@pytest.mark.embedded
async def test_so_many_are_answered_at_a_time(tmp_path: Path, maps: Path) -> None:
    """One more than the setting allows is refused as busy, before it is read; then there is a place again."""
    with EmbeddedProcess(tmp_path / "data", maps, ENVIRONMENT | {"GURNEY_SYNC_RUNS": "1"}) as server:
        async with Api(server.url, server.token) as api:
            await work.register(api, "shell", name="shell")
            first = asyncio.create_task(run(api, packed(SLEEP)))
            job = await only_job(api, lambda found: found["state"] == "running")
            (await run(api, packed())).must(503, "busy")
            (await run(api, packed("true"), Prefer="respond-async")).must(202)
            await api.post(f"/v1/jobs/{job['id']}/cancel")
            (await first).must(500)
            (await run(api, packed("true"))).must(200)


# --- bad input ---


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    return out.getvalue()


BAD = {
    "no archive": (b"this is no zip", "", {}, 422),
    "nothing": (b"", "", {}, 422),
    "cut off": (packed()[:-30], "", {}, 422),
    "a tar": (_tar(), "", {}, 422),
    "leaves its folder": (packed(files={"../out": "x"}), "", {}, 422),
    "absolute": (packed(files={"/etc/x": "x"}), "", {}, 422),
    "a bomb": (packed(files={"zeros": "0" * 65 * 1024**2}), "", {}, 422),
    "said to be a tar": (packed(), "", {"Content-Type": "application/x-tar"}, 415),
    "unknown parameter": (packed(), "?x=1", {}, 422),
    "endless": (packed(), "?timeout_s=-1", {}, 422),
    "other admission": (packed(), "?admission=maybe", {}, 422),
    "too much memory": (packed(), "?memory=1", {}, 422),
    "label": (packed(), "?label=a", {}, 422),
    "wait": (packed(), "", {"Prefer": "wait=soon"}, 422),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_input_runs_nothing(runner: Api, case: str) -> None:
    """What is wrong with a request is told before anything runs, and leaves neither job nor payload."""
    body, query, headers, status = BAD[case]
    (await run(runner, body, query, **headers)).must(status)
    assert await jobs(runner) == []
    assert await runner.all("/v1/payloads") == []


async def test_a_map_that_cannot_run_is_told(runner: Api) -> None:
    """One that is not there, and one that is not ready."""
    (await run(runner, packed(), ref="no-such-map")).must(404)
    broken = await work.register(runner, "broken-manifest")
    (await run(runner, packed(), ref=broken["id"])).must(409, "map_not_ready")
    assert await runner.all("/v1/payloads") == []


# --- who goes away ---


@contextlib.asynccontextmanager
async def left_alone(api: Api, body: bytes) -> AsyncIterator[Json]:
    """Begin a run, give its job once it runs, and close the connection at the end."""
    async with Api(api.url, api.token) as other:
        asked = asyncio.create_task(run(other, body))
        yield await only_job(api, lambda found: found["state"] == "running")
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError, aiohttp.ClientError):
            await asked


async def test_a_client_that_goes_away_ends_the_run(runner: Api, server: Server) -> None:
    """Its job is canceled, and its data go."""
    async with left_alone(runner, packed(SLEEP)) as job:
        pass
    await work.until(runner, job["id"], lambda found: found["finalized_at"])
    (job,) = await jobs(runner)
    assert job["state"] == "canceled"
    await nothing_stays(runner, server)


@pytest.mark.slow
@pytest.mark.embedded
async def test_a_killed_server_leaves_nothing_for_ever(tmp_path: Path, maps: Path) -> None:
    """Its runs are taken up by the next one, for nobody: soon they are canceled, and their data go."""
    server = EmbeddedProcess(tmp_path / "data", maps, ENVIRONMENT | {"GURNEY_RECONCILE_INTERVAL": "3"})
    with server:
        async with Api(server.url, server.token) as api:
            await work.register(api, "shell", name="shell")
            async with left_alone(api, packed(SLEEP.replace("60", "600"))) as job:
                await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        async with Api(server.url, server.token) as api, asyncio.timeout(90):
            while not (await api.get(f"/v1/jobs/{job['id']}")).must(200).json["finalized_at"]:
                await asyncio.sleep(0.5)
            assert (await api.get(f"/v1/jobs/{job['id']}")).json["state"] == "canceled"
            while await api.all("/v1/payloads"):
                await asyncio.sleep(0.1)
            await nothing_stays(api, server)


# --- memory ---


MIB = 1024**2


@pytest.mark.slow
@pytest.mark.embedded
async def test_memory_does_not_grow_with_the_data(tmp_path: Path, maps: Path) -> None:
    """500 MB in and out grow the server by at most 32 MiB."""
    environment = {**ENVIRONMENT, "GURNEY_MAX_UPLOAD": str(1024 * MIB), "GURNEY_MAX_OUTPUT": str(1024 * MIB)}
    small, big, out = (tmp_path / f"{name}.zip" for name in ("small", "big", "out"))
    await asyncio.to_thread(write_large, small, 2)
    await asyncio.to_thread(write_large, big, 480)
    with EmbeddedProcess(tmp_path / "data", maps, environment) as server:
        async with Api(server.url, server.token) as api, AsyncClient(server.url, server.token) as gurney:
            await work.register(api, "shell", name="shell")
            for _ in range(3):
                await gurney.runs.run("shell", small, out)
            before = peak(server.pid)
            await gurney.runs.run("shell", big, out)
            assert out.stat().st_size > 480 * MIB
            assert peak(server.pid) - before <= 32 * MIB


def write_large(path: Path, mebibytes: int) -> None:
    """Write a zip of files that are copied to the output, with no redundancy but of each other."""
    block = os.urandom(MIB)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("run.sh", 'cp "$HOLOSCAN_INPUT_PATH"/*.bin "$HOLOSCAN_OUTPUT_PATH/"')
        for number in range(0, mebibytes, 16):
            with archive.open(f"{number}.bin", "w") as member:
                for _ in range(min(16, mebibytes)):
                    member.write(block)


def peak(pid: int) -> int:
    """Return the most bytes that a process has held so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
