"""Stopping and starting: runs go on, everything is found as it was, one server a folder."""

import asyncio
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from gurney.testing.embedded import GURNEY, EmbeddedProcess
from tests.e2e import work
from tests.e2e.api import Api, Json


def counting(folder: Path, seconds: float) -> str:
    """Return a script that notes that it was started, and waits."""
    return f'echo "$GURNEY_RUN_ID $$" >> {folder}/starts; sleep {seconds}; echo done > "$HOLOSCAN_OUTPUT_PATH/f"'


async def restarted(server: EmbeddedProcess) -> None:
    assert await asyncio.to_thread(server.stop) == 0
    await asyncio.to_thread(server.start)


async def up(*options: object) -> subprocess.CompletedProcess[str]:
    """Run `gurney up` where it cannot start."""

    def run() -> subprocess.CompletedProcess[str]:
        command = [str(GURNEY), "up", *map(str, options)]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    return await asyncio.to_thread(run)


async def test_runs_are_adopted(own_server: EmbeddedProcess, tmp_path: Path) -> None:
    """Ctrl-C leaves a running job to the next start, which takes it to its end: started once, one attempt."""
    async with Api(own_server.url, own_server.token) as api:
        job = await work.begin(api, counting(tmp_path, 1.5))
        queued = await work.submit(api, job["map"]["id"], {"run.sh": counting(tmp_path, 0)})
        long = await work.begin(api, "sleep 0.2; exit 3", "half")
    await restarted(own_server)
    async with Api(own_server.url, own_server.token) as api:
        done = [await work.ended(api, each["id"]) for each in (job, queued, long)]
        assert [(each["state"], each["attempt"]) for each in done] == [
            ("succeeded", 1),
            ("succeeded", 1),
            ("failed", 1),
        ]
        assert done[2]["exit_code"] == 3
        assert await work.result(api, done[0], "f") == b"done\n"
        starts = [line.split()[0] for line in (tmp_path / "starts").read_text().splitlines()]
        assert sorted(starts) == sorted([f"{job['id']}-1", f"{queued['id']}-1"])
        for each in done:
            await work.nothing_left(own_server, each["id"])


@pytest.mark.slow
async def test_everything_is_as_it_was(own_server: EmbeddedProcess) -> None:
    """A second start on a folder has the same token, MAPs, payloads, jobs, logs, results, handlers and tokens."""
    async with Api(own_server.url, own_server.token) as api:
        made = await work.register(api, "shell", name="shell")
        script = 'echo hello; echo 1 > "$HOLOSCAN_OUTPUT_PATH/f"'
        job = await work.submit(api, "shell", {"run.sh": script}, name="kept")
        await work.ended(api, job["id"])
        (await api.post("/v1/handlers", {"url": "http://127.0.0.1:9/"})).must(201)
        (await api.post("/v1/tokens", {"subject": "x", "role": "clinician"})).must(201)
        await work.nothing_left(own_server, job["id"])
        before = await _everything(api, job["id"])
    token = own_server.token
    await restarted(own_server)
    assert own_server.token == token
    async with Api(own_server.url, token) as api:
        assert await _everything(api, job["id"]) == before
        again = await work.submit(api, made["id"], {"run.sh": "true"})
        assert (await work.ended(api, again["id"]))["state"] == "succeeded"


async def _everything(api: Api, job: str) -> Json:
    lists = ("/v1/maps", "/v1/payloads", "/v1/jobs", "/v1/handlers", "/v1/tokens")
    found: Json = {path: await api.all(path) for path in lists}
    for part in ("/story", "/logs", "/results/f"):
        found[part] = (await api.get(f"/v1/jobs/{job}{part}")).must(200).body
    found[""] = (await api.get(f"/v1/jobs/{job}")).must(200).json
    for each in (found[""], *found["/v1/jobs"]):
        del each["revision"]  # the note that all were told of its end comes later
    return found


async def test_one_server_a_folder(own_server: EmbeddedProcess, maps: Path) -> None:
    """A start on a folder on which a server runs says so in one line, with exit code 1, and disturbs nothing."""
    second = await up("--data", own_server.data, "--port", 0, "--maps", maps)
    assert second.returncode == 1
    assert second.stdout == ""
    (line,) = [line for line in second.stderr.splitlines() if not line.startswith("{")]
    assert str(own_server.data) in line
    assert str(own_server.pid) in line
    async with Api(own_server.url, own_server.token) as api:
        (await api.get("/readyz")).must(200)


@pytest.mark.slow
async def test_port_in_use(own_server: EmbeddedProcess, tmp_path: Path) -> None:
    """A start on a port that is taken says so in one line, with exit code 1, and leaves no nats-server."""
    port = own_server.url.rpartition(":")[2]
    data = tmp_path / "other"
    second = await up("--data", data, "--port", port)
    assert second.returncode == 1
    (line,) = [line for line in second.stderr.splitlines() if not line.startswith("{")]
    assert port in line
    assert line.endswith("give another --port")
    assert not (data / "nats" / "server.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_stops_in_order(own_server: EmbeddedProcess, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM stop it with exit code 0, its nats-server with it; open streams end, and no address stays."""
    nats = work.nats_pid(own_server.data)
    async with Api(own_server.url, own_server.token) as api, api.events("/v1/events") as events:
        os.kill(own_server.pid, number)
        async with asyncio.timeout(work.PATIENCE_S):
            assert [event async for event in events] == []
        assert await asyncio.to_thread(own_server.stop) == 0
    assert not work.is_alive(nats)
    assert not (own_server.data / "url").exists()


@pytest.mark.slow
@pytest.mark.parametrize("noted", [True, False], ids=["noted", "not-noted-yet"])
async def test_killed_server_leaves_no_nats_server(own_server: EmbeddedProcess, tmp_path: Path, *, noted: bool) -> None:
    """A start after SIGKILL ends the nats-server that was left, adopts what runs, and starts nothing twice."""
    async with Api(own_server.url, own_server.token) as api:
        job = await work.begin(api, counting(tmp_path, 1))
    left = work.nats_pid(own_server.data)
    await asyncio.to_thread(own_server.kill)
    if not noted:
        (own_server.data / "nats" / "server.json").unlink()
    await asyncio.to_thread(own_server.start)
    assert work.nats_pid(own_server.data) != left
    assert not work.is_alive(left)
    async with Api(own_server.url, own_server.token) as api:
        assert (await work.ended(api, job["id"]))["state"] == "succeeded"
    assert len((tmp_path / "starts").read_text().splitlines()) == 1


@pytest.mark.slow
async def test_nobody_else_reads_the_folder(own_server: EmbeddedProcess) -> None:
    """The data folder, the token and the nats-server's password are closed to others."""
    assert own_server.data.stat().st_mode & 0o077 == 0
    for name in ("token", "run-secret", "nats/nats-server.conf"):
        assert (own_server.data / name).stat().st_mode & 0o777 == 0o600
    mark = json.loads((own_server.data / "nats" / "server.json").read_text())
    assert mark["pid"] > 0
