"""What the container of a run may and has, and what becomes of applications that misbehave in one."""

import asyncio
import json
from contextlib import closing
from typing import Any

import pytest

from gurney.testing.docker import DockerDaemon, make_image
from tests.e2e import endings, work
from tests.e2e.api import Api, Json
from tests.e2e.endings import FAILURES, OUTPUTS, REJECTED, Run
from tests.e2e.servers import Server
from tests.e2e.test_docker import OUT, SHELL, image_files, register

pytestmark = [pytest.mark.needs("docker"), pytest.mark.needs("registry")]

MIB = 1024**2
IN = "$HOLOSCAN_INPUT_PATH"
APP = {"command": json.dumps(SHELL), "input": {"path": "input/"}, "output": {"path": "output/"}}
SMALL = {"cpu": 0.5, "memory": "64Mi"}
#: Name of an image that runs its input -> what its manifest asks, and what else it is.
IMAGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "user": (SMALL, ["USER 1000:1000"]),
    "root": (SMALL, []),
    "sharing": (SMALL | {"sharedMemory": "96Mi"}, ["USER 1000:1000"]),
}
#: Reads a limit of the control groups, in whichever of their versions.
GROUP = """group() { cat "/sys/fs/cgroup/$1" 2> /dev/null || cat "/sys/fs/cgroup/$2"; }\n"""
COMPATIBLE = {"hardening": {"mode": "compatible", "reason": "its framework writes beside itself"}}


@pytest.fixture(scope="session")
def server(docker_server: Server) -> Server:
    """A server whose agent has the daemon."""
    return docker_server


@pytest.fixture(scope="session")
def images(docker_daemon: DockerDaemon) -> dict[str, str]:
    """Name -> reference."""
    with closing(docker_daemon.client()) as client:
        for name, (asked, changes) in IMAGES.items():
            make_image(client, f"e2e-run-{name}:1", image_files(APP, {"resources": asked}), changes)
    return {name: f"e2e-run-{name}:1" for name in IMAGES}


@pytest.fixture
def run(api: Api, server: Server, images: dict[str, str], docker_daemon: DockerDaemon) -> Run:
    """Runs a shell script in a container to its end, and holds the host against what it may not have any more."""

    async def script_to_its_end(script: str, image: str = "user", **options: Any) -> Json:
        about = {name: options.pop(name) for name in ("hardening",) if name in options}
        made = await register(api, images[image], **about)
        assert made["state"] == "ready", made["reason"]
        job = await work.ended(api, (await work.submit(api, made["id"], {"run.sh": script}, **options))["id"])
        await work.nothing_left(server, job["id"])
        async with asyncio.timeout(work.PATIENCE_S):
            while await asyncio.to_thread(containers, docker_daemon, job["id"]):
                await asyncio.sleep(0.02)
        return job

    return script_to_its_end


def containers(daemon: DockerDaemon, job: str) -> list[Any]:
    """Return what there is of a job's containers."""
    with closing(daemon.client()) as client:
        return list(client.containers(all=True, filters={"label": f"gurney.job={job}"}))


async def said(api: Api, job: Json) -> list[str]:
    """Return what a run that succeeded has said, line by line."""
    assert job["state"] == "succeeded", job
    return (await work.log(api, job)).splitlines()


# --- what it has ---


@pytest.mark.req("MAS-32", "MAS-42")
async def test_what_a_run_may(api: Api, run: Run) -> None:
    """A run is the image's user, without capabilities, network, or a way to write but its output and /tmp."""
    script = f"""
        id -u; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status | tr -d '[:space:]'; echo
        ls /sys/class/net; touch /root-is-closed 2>&1; touch {IN}/x 2>&1; mknod {OUT}/x c 1 3 2>&1
        nc -w 1 192.0.2.1 80 2>&1; echo x > /tmp/x && echo tmp; echo x > {OUT}/x && echo out
    """
    user, status, network, *refused, tmp, out = await said(api, await run(script))
    assert (user, status, network) == ("1000", "CapEff:0000000000000000CapBnd:0000000000000000NoNewPrivs:1", "lo")
    words = ("Read-only", "Read-only", "not permitted", "unreachable")
    assert all(word in line for word, line in zip(words, refused, strict=True)), refused
    assert (tmp, out) == ("tmp", "out")


@pytest.mark.req("MAS-32")
async def test_limits_are_applied(api: Api, run: Run) -> None:
    """Memory without swap, processor time and the number of processes are limited as asked, and the run can see it."""
    script = f"""{GROUP}
        group memory/memory.limit_in_bytes memory.max
        group pids/pids.max pids.max
        cd /sys/fs/cgroup; cat cpu.max 2> /dev/null || cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us
    """
    memory, processes, *cpu = await said(api, await run(script, resources={"cpu": 0.25, "memory": 32 * MIB}))
    quota, period = " ".join(cpu).split()
    assert (int(memory), int(processes), int(quota) / int(period)) == (32 * MIB, 4096, 0.25)


@pytest.mark.parametrize(
    ("image", "asked", "size"),
    [("user", None, 64), ("sharing", None, 96), ("sharing", 48, 48)],
    ids=["default", "map", "job"],
)
@pytest.mark.req("MAS-32")
async def test_shared_memory(api: Api, run: Run, image: str, asked: int | None, size: int) -> None:
    """A run has 64 MiB of shared memory, or what its MAP asks, or what its job asks over that; it can be filled."""
    resources = {"memory": 256 * MIB} | ({"shared_memory": asked * MIB} if asked else {})
    script = "df -k /dev/shm | tail -n 1; dd if=/dev/zero of=/dev/shm/x bs=1M 2> /dev/null; stat -c %s /dev/shm/x"
    told, filled = await said(api, await run(script, image, resources=resources))
    assert (int(told.split()[1]), int(filled)) == (size * 1024, size * MIB)


async def test_compatible(api: Api, run: Run) -> None:
    """A MAP that is hardened no more than it bears may write beside itself and has some capabilities, never all."""
    script = f"""echo x > /written && echo root; grep CapEff /proc/self/status
        mknod {OUT}/x c 1 3 2>&1; ls /sys/class/net; touch {IN}/x 2>&1; grep NoNewPrivs /proc/self/status"""
    job = await run(script, "root", **COMPATIBLE)
    written, capabilities, device, network, refused, privileges = await said(api, job)
    assert (written, network, privileges.split()) == ("root", "lo", ["NoNewPrivs:", "1"])
    assert int(capabilities.split()[1], 16).bit_count() == 9
    assert "not permitted" in device
    assert "Read-only" in refused


async def test_hardening_is_strict_unless_asked(api: Api, run: Run) -> None:
    """Also root in an image of root may not write beside itself, and has no capability."""
    script = "id -u; touch /written 2>&1; grep CapEff /proc/self/status; chown 1 /tmp 2>&1; true"
    user, written, capabilities, owner = await said(api, await run(script, "root"))
    assert (user, int(capabilities.split()[1], 16)) == ("0", 0)
    assert "Read-only" in written
    assert "not permitted" in owner


async def test_other_jobs_are_out_of_reach(api: Api, server: Server, images: dict[str, str], run: Run) -> None:
    """A run finds neither files nor processes of another that runs beside it, even where it knows their place."""
    made = await register(api, images["user"])
    other = await work.submit(api, made["id"], {"run.sh": "echo $$ > $HOLOSCAN_OUTPUT_PATH/s; sleep 60", "secret": "x"})
    await work.until(api, other["id"], lambda found: found["state"] == "running")
    (folder,) = [host / "agent" / "work" / f"{other['id']}-1" for host in server.hosts]
    assert (folder / "input" / "secret").exists()
    script = f"""
        cat {folder}/input/secret 2>&1; find / -name secret 2> /dev/null
        for process in /proc/[0-9]*; do tr '\\0' '\\n' < $process/environ; done | grep -c {other["id"]}; true
    """
    found = await said(api, await run(script, "root", **COMPATIBLE))
    assert "No such file" in found[0]
    assert found[1:] == ["0"]


# --- how it ends ---


@pytest.mark.parametrize("name", FAILURES)
async def test_failures(api: Api, run: Run, name: str) -> None:
    """Each way to fail is told as what it is, with the end of the log, and keeps what was written as partial."""
    await endings.check_failure(api, run, name)


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.req("MAS-42")
async def test_outputs(api: Api, run: Run, name: str) -> None:
    """What an application may write comes home as it wrote it."""
    await endings.check_output(api, run, name)


@pytest.mark.slow
async def test_many_files(api: Api, run: Run) -> None:
    """5,000 files in folders all come home, each with its content."""
    await endings.check_many(api, run)


@pytest.mark.parametrize("name", REJECTED)
async def test_rejected_output(api: Api, run: Run, name: str) -> None:
    """What is neither file nor folder, or leads out of the output, fails the job."""
    await endings.check_rejected(api, run, REJECTED[name])


async def test_socket_in_the_output(api: Api, run: Run) -> None:
    """A socket is refused. Of what an image of busybox has, the system's log makes one, as root."""
    making = """
        ln -s "$OUT/bad" /dev/log; syslogd -O /tmp/log
        for i in $(seq 100); do [ -S "$OUT/bad" ] && break; sleep 0.05; done
    """

    async def as_root(script: str, **options: Any) -> Json:
        return await run(script, "root", **options)

    await endings.check_rejected(api, as_root, making)


@pytest.mark.slow
async def test_flooded_log(api: Api, run: Run) -> None:
    """Of a log that is too long to be kept whole, the beginning and the end are kept, and how much is missing."""
    job = await run("echo begin; yes 'a line of the log' | head -c 90000000; echo end", timeout_s=50)
    assert (job["state"], len(job["log_tail"]), job["log_tail"][-1]) == ("succeeded", 100, "end")
    kept = (await api.get(f"/v1/jobs/{job['id']}/logs")).must(200).body
    assert len(kept) == job["logs"][0]["bytes"] < 65 * MIB
    assert kept.startswith(b"begin\na line of the log\n")
    assert kept.endswith(b"a line of the log\nend\n")
    assert f"{90_000_000 + 10 - 64 * MIB} bytes of the log are left out".encode() in kept


@pytest.mark.slow
async def test_forks_without_end(api: Api, run: Run) -> None:
    """A run that forks without end meets the limit of processes and fails; the host goes on, and so do its jobs."""
    job = await run("while :; do sleep 60 & done", resources={"memory": 2048 * MIB}, timeout_s=50)
    assert (job["state"], job["reason"]["code"], job["exit_code"]) == ("failed", "exit_nonzero", 2), job
    assert "can't fork" in job["log_tail"][-1]
    assert await said(api, await run("echo well")) == ["well"]
