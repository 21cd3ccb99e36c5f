"""What the Docker runtime promises beyond the port: crashes between its steps, other daemons, images, leftovers."""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gurney import clock
from gurney.errors import ImageUnavailable, MapUnreadable, Unavailable
from gurney.model.common import READY
from gurney.runtime.docker import probe, watch
from gurney.runtime.docker.container import Means, config
from gurney.runtime.docker.daemon import Client
from gurney.runtime.docker.house import name_of
from gurney.runtime.docker.runtime import DockerRuntime
from gurney.runtime.port import Cause, Inspection
from gurney.settings import Settings
from gurney.testing.disk import SmallDisk
from gurney.testing.docker import DockerDaemon, make_image
from gurney.testing.registry import Registry
from services.agent.__main__ import build
from tests.contract.docker_harness import APP, FILES, DockerHarness, make_app
from tests.contract.runtime_harness import MIB, SECONDS, App

pytestmark = [pytest.mark.needs("docker"), pytest.mark.needs("registry")]

Ask = Callable[[Callable[[Client], Any]], Any]
WAIT = 'echo > "$OUT/ready"; read _ < "$OUT/go"; exit 5'
#: Minor numbers of devices of memory: containers may open two of them, and never the third.
ZERO, FULL, KMSG = 5, 7, 11


@pytest.fixture(scope="session")
def app_daemon(docker_daemon: DockerDaemon) -> DockerDaemon:
    """The daemon of the run, with an image to run."""
    make_app(docker_daemon)
    return docker_daemon


@pytest.fixture
def closed_harness(app_daemon: DockerDaemon, registry: Registry, tmp_path: Path) -> DockerHarness:
    """A runtime that is not open."""
    return DockerHarness(tmp_path, app_daemon, f"{registry.address}/nothing:1")


@pytest.fixture
async def harness(closed_harness: DockerHarness) -> AsyncIterator[DockerHarness]:
    """An open runtime; whatever was started through it is ended."""
    await closed_harness.open()
    yield closed_harness
    await closed_harness.finish()


@pytest.fixture
def client(app_daemon: DockerDaemon) -> Iterator[Client]:
    """A client of our own to look at the daemon."""
    made = app_daemon.client()
    yield made
    made.close()


async def waiting(harness: DockerHarness, script: str = WAIT) -> App:
    """Return a run that waits."""
    digest = (await harness.runtime.inspect(harness.urn)).digest
    run = App(harness, digest, script, "job_1-1")
    run.pipe("ready", "go")
    return run


async def begun(harness: DockerHarness, script: str = WAIT) -> App:
    """Return a run that has begun, and says so."""
    run = await waiting(harness, script)
    await harness.runtime.start(run.spec)
    await run.told("ready")
    return run


async def test_container_of_a_run(harness: DockerHarness, client: Client) -> None:
    """The container is named after the run, tells whose it is, and may do nothing that is not needed."""
    run = await waiting(harness)
    run.spec = replace(run.spec, project="p1")
    await harness.runtime.start(run.spec)
    await run.told("ready")
    found = await asyncio.to_thread(client.inspect_container, name_of("job_1-1"))
    labels, host = found["Config"]["Labels"], found["HostConfig"]
    assert {name: labels[f"gurney.{name}"] for name in ("run", "job", "node", "project")} == {
        "run": "job_1-1",
        "job": "job_1",
        "node": "n1",
        "project": "p1",
    }
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (512 * MIB, 512 * MIB, 500_000_000)
    assert (host["CapDrop"], host["SecurityOpt"], host["Privileged"]) == (["ALL"], ["no-new-privileges"], False)
    assert (host["ReadonlyRootfs"], host["ShmSize"], host["PidsLimit"] > 0) == (True, 64 * MIB, True)
    mounts = {each["Destination"]: each["RW"] for each in found["Mounts"]}
    assert mounts == {"/var/holoscan/input": False, "/var/holoscan/output": True}
    run.tell("go")
    await run.end()
    run.close()


@pytest.mark.parametrize("gpus", [("GPU-b", "MIG-a"), ()])
async def test_gpus_of_a_container(harness: DockerHarness, client: Client, gpus: tuple[str, ...]) -> None:
    """The container gets exactly the GPUs that were placed, by UUID, and none where none was: the daemon says so."""
    run = await waiting(harness)
    run.spec = replace(run.spec, gpus=gpus, command=("true",))
    end = await run.run()
    assert end.cause is (Cause.NOT_STARTED if gpus else Cause.EXITED)  # the machine of the tests has none
    found = await asyncio.to_thread(client.inspect_container, name_of("job_1-1"))
    asked = found["HostConfig"]["DeviceRequests"] or []
    assert [(each["DeviceIDs"], each["Count"]) for each in asked] == ([(list(gpus), 0)] if gpus else [])
    assert [each["Capabilities"] for each in asked] == ([[["gpu"]]] if gpus else [])
    variables = dict(each.split("=", 1) for each in found["Config"]["Env"])
    assert variables["CUDA_VISIBLE_DEVICES"] == ",".join(gpus)
    assert variables["NVIDIA_VISIBLE_DEVICES"] == (",".join(gpus) or "void")
    assert (found["HostConfig"]["Devices"] or [], found["HostConfig"]["Privileged"]) == ([], False)
    run.close()


def give_device(pid: int, name: str, minor: int, mode: int = 0o666) -> None:
    """Give a container that has this process a memory device under another name, as NVIDIA's toolkit gives its."""
    path = Path(f"/proc/{pid}/root/dev/{name}")
    os.mknod(path, stat.S_IFCHR, os.makedev(1, minor))
    path.chmod(mode)


def take_device(container: str, pid: int, name: str, minor: int) -> None:
    """Have the rules of its control group refuse the device, as after a reload of the host's service manager.

    Where groups are of the second version, and rules are programs, it becomes one that they never let through.
    """
    rules = Path(f"/sys/fs/cgroup/devices/docker/{container}/devices.deny")
    if rules.exists():
        rules.write_text(f"c 1:{minor} rwm")
    else:
        Path(f"/proc/{pid}/root/dev/{name}").unlink()
        give_device(pid, name, KMSG)
    os.close(os.open(f"/proc/{pid}/root/dev/{name}", os.O_RDONLY | os.O_NONBLOCK))  # to the host it opens as before


@pytest.mark.parametrize("lost", ["nvidia3", "nvidiactl"])
async def test_devices_that_a_container_may_open_no_more(harness: DockerHarness, client: Client, lost: str) -> None:
    """A live run that may no longer open one of its GPU devices is told, and one that has none; the run goes on."""
    run = await begun(harness)
    found = await asyncio.to_thread(client.inspect_container, name_of("job_1-1"))
    pid, container = found["State"]["Pid"], found["Id"]

    async def seen() -> bool | None:
        async with asyncio.timeout(SECONDS):
            while (told := await harness.runtime.may_open_gpus("job_1-1")) is None:
                await asyncio.sleep(0.1)  # how much memory it uses is not known yet
        return told

    await asyncio.to_thread(give_device, pid, "nvidia3", ZERO)
    await asyncio.to_thread(give_device, pid, "nvidiactl", FULL)
    await asyncio.to_thread(give_device, pid, "nvidia-modeset", KMSG)  # nothing that computes needs it
    await asyncio.to_thread(give_device, pid, "nvidia-uvm", ZERO, 0o600)  # no rule refuses it, but its own mode
    assert await seen() is True
    await asyncio.to_thread(take_device, container, pid, lost, ZERO if lost == "nvidia3" else FULL)
    assert await seen() is False
    run.tell("go")
    end = await run.end()
    assert (end.cause, end.exit_code) == (Cause.EXITED, 5)
    assert await harness.runtime.may_open_gpus("job_1-1") is None
    run.close()


@pytest.mark.parametrize("lacks", ["devices", "a shell", "memory"])
async def test_devices_of_which_nothing_can_be_told(harness: DockerHarness, client: Client, lacks: str) -> None:
    """Of a container without such devices, without a shell, or without memory for one, nothing is known."""
    run = await waiting(harness)
    if lacks == "a shell":
        command = ("/bin/busybox", "sh", "-c", f"OUT=$HOLOSCAN_OUTPUT_PATH; {WAIT}")
        run.spec = replace(run.spec, command=command, environment={"PATH": "/nothing"})
    run.spec = replace(run.spec, memory=probe.ROOM if lacks == "memory" else 0)
    await harness.runtime.start(run.spec)
    await run.told("ready")
    pid = (await asyncio.to_thread(client.inspect_container, name_of("job_1-1")))["State"]["Pid"]
    if lacks != "devices":
        await asyncio.to_thread(give_device, pid, "nvidia0", KMSG)
    assert await harness.runtime.may_open_gpus("job_1-1") is None
    run.tell("go")
    assert (await run.end()).exit_code == 5
    run.close()


async def test_output_belongs_to_the_user_of_the_image(harness: DockerHarness) -> None:
    """What the application writes is the image's user's, who finds his output folder writable by him alone."""
    run = await waiting(harness, 'echo x > "$OUT/file"')
    assert (await run.run()).exit_code == 0
    assert (run.output.stat().st_uid, (run.output / "file").stat().st_uid) == (1234, 1234)
    assert not run.output.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    run.close()


async def test_runs_share_no_network(harness: DockerHarness) -> None:
    """Two runs of one project at the same time do not reach each other, not even on the loopback device."""
    digest = (await harness.runtime.inspect(harness.urn)).digest
    server = App(harness, digest, 'nc -l -p 4000 -e true & echo > "$OUT/ready"; read _ < "$OUT/go"', "job_1-1")
    server.pipe("ready", "go")
    await harness.runtime.start(server.spec)
    await server.told("ready")
    client = App(
        harness, digest, "ls /sys/class/net; nc -w 1 127.0.0.1 4000 < /dev/null 2> /dev/null || echo closed", "job_2-1"
    )
    assert (await client.run()).exit_code == 0
    assert client.log().splitlines()[0] == "lo"
    assert client.log().splitlines()[-1] == "closed"
    server.tell("go")
    await server.end()
    server.close()


@pytest.fixture(scope="module")
def network_daemon() -> Iterator[DockerDaemon]:
    """A daemon that can make networks, with an image to run."""
    with DockerDaemon(Path(tempfile.mkdtemp(prefix="gurney-docker-")), has_networks=True) as daemon:
        make_app(daemon)
        yield daemon


@pytest.fixture
async def with_networks(network_daemon: DockerDaemon, tmp_path: Path) -> AsyncIterator[DockerHarness]:
    """An open runtime over a daemon that can make networks."""
    harness = DockerHarness(tmp_path, network_daemon, "nothing:1")
    await harness.open()
    yield harness
    await harness.finish()


#: Connects to a port.
REACH = "nc -w 1 {0} {1} < /dev/null 2> /dev/null"


async def test_runs_with_a_network_reach_its_gateway_and_not_each_other(
    with_networks: DockerHarness, network_daemon: DockerDaemon
) -> None:
    """A run that may has a way out; another run on the same network is out of reach."""
    digest = (await with_networks.runtime.inspect(with_networks.urn)).digest

    def networked(script: str, run_id: str) -> App:
        run = App(with_networks, digest, script, run_id)
        run.spec = replace(run.spec, network=True)
        return run

    listening = f"nc -ll -p 4000 -e true & until {REACH.format('127.0.0.1', 4000)}; do sleep 0.1; done"
    server = networked(f'{listening}; echo > "$OUT/ready"; read _ < "$OUT/go"', "job_1-1")
    server.pipe("ready", "go")
    await with_networks.runtime.start(server.spec)
    await server.told("ready")
    host, place = await asyncio.to_thread(_beside, network_daemon)
    outside, other = REACH.format(place["Gateway"], 4001), REACH.format(place["IPAddress"], 4000)
    visitor = networked(f"until {outside}; do sleep 0.1; done; {other} && echo open || echo closed", "job_2-1")
    assert (await visitor.run()).exit_code == 0
    assert await asyncio.to_thread(_log_of, network_daemon, host) == b"open\n"
    assert visitor.log() == "closed\n"
    server.tell("go")
    await server.end()
    server.close()
    visitor.close()


def _beside(daemon: DockerDaemon) -> tuple[str, dict[str, Any]]:
    """Start a container on the host's network that reaches the server and serves; return it and the server's place."""
    with contextlib.closing(daemon.client()) as client:
        (place,) = client.inspect_container(name_of("job_1-1"))["NetworkSettings"]["Networks"].values()
        script = f"{REACH.format(place['IPAddress'], 4000)} && echo open; nc -ll -p 4001 -e true"
        given = {"Image": APP, "Entrypoint": ["sh", "-c", script], "HostConfig": {"NetworkMode": "host"}}
        host = client.make(given, "host")
        client.start(host)
        return host, place


def _log_of(daemon: DockerDaemon, container: str) -> bytes:
    with contextlib.closing(daemon.client()) as client:
        told: bytes = client.logs(container)
        return told


async def test_namespaces_are_used_again(harness: DockerHarness, client: Client) -> None:
    """Run after run of a project gets the same network namespace, another project another."""
    digest = (await harness.runtime.inspect(harness.urn)).digest
    networks = []
    for number, project in enumerate(("a", "a", "b")):
        run = App(harness, digest, "true", f"job_{number}-1")
        run.spec = replace(run.spec, project=project)
        await run.run()
        found = await asyncio.to_thread(client.inspect_container, name_of(run.spec.run_id))
        networks.append(found["HostConfig"]["NetworkMode"])
    assert networks[0] == networks[1] != networks[2]
    assert all(network.startswith("container:") for network in networks)


async def test_namespaces_after_a_restart(harness: DockerHarness, client: Client) -> None:
    """At its start an agent goes on with the namespaces that it had, and removes those that have ended."""
    digest = (await harness.runtime.inspect(harness.urn)).digest
    for project in ("a", "b"):
        run = App(harness, digest, "true", f"job_{project}-1")
        run.spec = replace(run.spec, project=project)
        await run.run()
    made = await asyncio.to_thread(client.containers, filters={"label": "gurney.pause"})
    kept, ended = sorted(made, key=lambda each: each["Labels"]["gurney.project"])
    await harness.runtime.close()
    await asyncio.to_thread(client.kill, ended["Id"])
    await harness.reopen()
    run = App(harness, digest, "true", "job_2-1")
    run.spec = replace(run.spec, project="a")
    await run.run()
    async with asyncio.timeout(SECONDS):
        while len(left := await asyncio.to_thread(client.containers, all=True, filters={"label": "gurney.pause"})) > 1:
            await asyncio.sleep(0.05)
    assert [each["Id"] for each in left] == [kept["Id"]]


async def test_crash_between_create_and_mark(harness: DockerHarness, client: Client) -> None:
    """A container without a mark never ran: it makes way, and the run is started, once."""
    run = await waiting(harness, 'echo >> "$OUT/count"')
    house = harness.runtime._host.house  # type: ignore[attr-defined]
    async with harness.runtime._images.brought(run.spec.urn, run.spec.digest) as image:  # type: ignore[attr-defined]
        body = config(run.spec, image, Means("none", 1.0, None, house.labels))
    left = await asyncio.to_thread(client.make, body, name_of("job_1-1"))
    await harness.reopen()
    assert await harness.runtime.runs() == []
    assert (await run.run()).exit_code == 0
    assert (run.output / "count").read_text() == "\n"
    assert (await asyncio.to_thread(client.inspect_container, name_of("job_1-1")))["Id"] != left
    run.close()


async def test_crash_between_mark_and_start(harness: DockerHarness, client: Client) -> None:
    """A mark whose container never ran is the end of the run: nobody starts it, it is told as lost, nothing is left."""
    run = await waiting(harness)
    run.spec = replace(run.spec, command=("sleep", "1000"))
    await harness.runtime.start(run.spec)
    await harness.runtime.close()
    body = await asyncio.to_thread(_created_instead, client, "job_1-1")
    mark = harness.data / "docker" / "runs" / "job_1-1" / "started"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"container": body}))
    await harness.reopen()
    await harness.runtime.start(run.spec)
    end = await run.end()
    assert (end.cause, end.exit_code) == (Cause.LOST, None)
    assert await asyncio.to_thread(client.containers, all=True, filters={"name": "gurney-job_1-1"}) == []
    assert not (await asyncio.to_thread(client.volumes))["Volumes"]
    run.close()


def _created_instead(client: Client, run_id: str) -> str:
    """Put a container in the place of a run's that was created and not started."""
    found = client.inspect_container(name_of(run_id))
    client.remove_container(found["Id"], force=True)
    body = {"Image": found["Image"], "Entrypoint": ["sleep", "1000"], "Labels": found["Config"]["Labels"]}
    body["Volumes"] = {"/data": {}}
    return client.make(body, name_of(run_id))


async def test_container_that_is_gone(harness: DockerHarness, client: Client) -> None:
    """A run whose container was removed by somebody else is lost, whether we look or not."""
    run = await waiting(harness)
    ends = harness.runtime.ends()
    await harness.runtime.start(run.spec)
    await run.told("ready")
    await harness.runtime.close()
    await asyncio.to_thread(client.remove_container, name_of("job_1-1"), force=True)
    await harness.reopen()
    end = await run.end()
    assert (end.cause, end.message) == (Cause.LOST, "its container is gone")
    assert [each async for each in ends] == []
    run.close()


async def test_orphans_go_and_others_stay(harness: DockerHarness, client: Client) -> None:
    """Containers of ours that no file knows are removed at the start; those of others are let alone."""
    house = harness.runtime._host.house  # type: ignore[attr-defined]
    ours = {"Image": APP, "Entrypoint": ["sleep", "1000"], "Labels": {**house.labels, "gurney.run": "job_9-1"}}
    other = ours | {"Labels": {"gurney.run": "job_8-1", "gurney.house": "other", "gurney.node": "n1"}}
    for name, body in (("gurney-job_9-1", ours), ("gurney-job_8-1", other)):
        client.start(await asyncio.to_thread(client.make, body, name))
    await harness.reopen()
    async with asyncio.timeout(SECONDS):
        while await asyncio.to_thread(client.containers, all=True, filters={"name": "gurney-job_9-1"}):
            await asyncio.sleep(0.05)
    assert await asyncio.to_thread(client.containers, filters={"name": "gurney-job_8-1"})


async def test_name_of_a_foreign_container(harness: DockerHarness, client: Client) -> None:
    """Where somebody else has a container of that name, the run does not begin, and the other one stays."""
    body = {"Image": APP, "Entrypoint": ["sleep", "1000"], "Labels": {}}
    foreign = await asyncio.to_thread(client.make, body, name_of("job_1-1"))
    run = await waiting(harness)
    end = await run.run()
    assert end.cause == Cause.NOT_STARTED
    assert "somebody else" in end.message
    assert (await asyncio.to_thread(client.inspect_container, name_of("job_1-1")))["Id"] == foreign
    run.close()


async def test_daemon_away(harness: DockerHarness) -> None:
    """Without its daemon the runtime says so; starts are to be tried again, and runs that began count as running."""
    run = await begun(harness)
    assert harness.runtime.fault is None
    await asyncio.to_thread(harness.daemon.kill)
    try:
        async with asyncio.timeout(SECONDS):
            while harness.runtime.fault is None:
                await asyncio.sleep(0.01)
        assert "Docker daemon" in harness.runtime.fault
        with pytest.raises(Unavailable):
            await harness.runtime.start(replace(run.spec, run_id="job_2-1"))
        with pytest.raises(Unavailable):
            await harness.runtime.inspect(harness.urn)
        await harness.reopen()
        observed = await run.observed()
        assert observed is not None
        assert observed.end is None
        await harness.runtime.stop("job_1-1", 0.0)
    finally:
        await asyncio.to_thread(harness.daemon.start)
    assert (await run.end()).cause == Cause.STOPPED
    run.close()


async def test_output_while_the_daemon_was_away(harness: DockerHarness) -> None:
    """What a run said before, while and after the daemon was away is in its log, once."""
    script = (
        'echo one; echo > "$OUT/ready"; read _ < "$OUT/go"; echo two; echo > "$OUT/ready"; read _ < "$OUT/go"; echo 3'
    )
    run = await begun(harness, script)
    await asyncio.to_thread(harness.daemon.kill)
    run.tell("go")
    await run.told("ready")
    await asyncio.to_thread(harness.daemon.start)
    run.tell("go")
    assert (await run.end()).exit_code == 0
    assert run.log() == "one\ntwo\n3\n"
    run.close()


async def test_end_while_the_daemon_was_away(harness: DockerHarness) -> None:
    """The exit code of a run that ended while the daemon was away is known, and what it had said before."""
    run = await begun(harness, f"echo before; {WAIT}")
    await asyncio.to_thread(harness.daemon.kill)
    run.tell("go")
    await asyncio.sleep(0.2)  # nobody is there to tell that it has ended
    await asyncio.to_thread(harness.daemon.start)
    end = await run.end()
    assert (end.cause, end.exit_code) == (Cause.EXITED, 5)
    assert run.log() == "before\n"
    run.close()


async def test_daemon_that_takes_its_containers_with_it(tmp_path: Path) -> None:
    """Where the daemon has no live restore, a run that it took down is lost, whatever its exit code looks like."""
    folder = Path(tempfile.mkdtemp(prefix="gurney-docker-"))
    daemon = DockerDaemon(folder, live_restore=False)
    await asyncio.to_thread(daemon.start)
    try:
        await asyncio.to_thread(make_app, daemon)
        harness = DockerHarness(tmp_path, daemon, "nothing:1")
        await harness.open()
        run = await waiting(harness)
        await harness.runtime.start(run.spec)
        await run.told("ready")
        await harness.crash()
        end = await run.end()
        assert (end.cause, end.exit_code) == (Cause.LOST, None)
        assert "daemon" in end.message
        await harness.finish()
        run.close()
    finally:
        await asyncio.to_thread(daemon.__exit__, None, None, None)


@pytest.fixture
def pushed(client: Client, registry: Registry) -> Iterator[str]:
    """A reference into the registry to an image that this host has not."""
    name = f"app-{os.urandom(4).hex()}"
    make_image(client, f"{name}:1", FILES | {"etc/name": name}, ["USER named:named"])
    reference = registry.push(client, f"{name}:1", name)
    for each in (f"{name}:1", reference):
        client.remove_image(each)
    yield reference
    for image in client.images(name=reference.rpartition(":")[0]):
        client.remove_image(image["Id"], force=True)


async def test_pull_by_digest(harness: DockerHarness, client: Client, pushed: str) -> None:
    """An image is pinned by its registry's digest and pulled by it, whatever its tag says later."""
    urn = f"urn:oci:{pushed}"
    digest = (await harness.runtime.inspect(urn)).digest
    repository = pushed.rpartition(":")[0]
    assert (await asyncio.to_thread(client.inspect_distribution, pushed))["Descriptor"]["digest"] == digest
    assert await asyncio.to_thread(client.image, pushed) is None  # a tag of this host is its owner's
    await asyncio.to_thread(client.remove_image, f"{repository}@{digest}")
    assert await asyncio.to_thread(client.image, f"{repository}@{digest}") is None
    await harness.runtime.available(urn, digest)
    assert await asyncio.to_thread(client.image, f"{repository}@{digest}") is not None


async def test_image_that_cannot_be_had(harness: DockerHarness, pushed: str) -> None:
    """A digest that the registry has not, and one of an image that was built elsewhere, are not available: retried."""
    absent = f"sha256:{hashlib.sha256(b'nothing').hexdigest()}"
    for urn in (f"urn:oci:{pushed}", harness.urn):
        with pytest.raises(ImageUnavailable) as told:
            await harness.runtime.available(urn, absent)
        assert "\n" not in str(told.value)


async def test_registry_that_is_away(harness: DockerHarness) -> None:
    """An image whose registry does not answer is told at once as what it is, in one line."""
    with pytest.raises(MapUnreadable) as told:
        await harness.runtime.inspect("urn:oci:127.0.0.1:1/app:1")
    assert told.value.reason == "image_unavailable"
    assert "\n" not in str(told.value)


async def _inspect(
    harness: DockerHarness, client: Client, files: dict[str, str | bytes], *, described: bool = False
) -> Inspection:
    name = f"read-{os.urandom(4).hex()}:1"
    # A command that would show if it were run.
    await asyncio.to_thread(make_image, client, name, files, ['ENTRYPOINT ["touch", "/ran"]'])
    try:
        return await harness.runtime.inspect(f"urn:oci:{name}", described=described)
    finally:
        await asyncio.to_thread(client.remove_image, name, force=True)


async def test_manifests_of_both_generations(harness: DockerHarness, client: Client) -> None:
    """Manifests are read from either folder, the newer one first, bytes as they are."""
    old: dict[str, str | bytes] = {"etc/monai/app.json": b"\xef\xbb\xbf{}", "etc/monai/pkg.json": "{}"}
    found = await _inspect(harness, client, old)
    assert found.manifests == {f"/{path}": _bytes(raw) for path, raw in old.items()}
    new: dict[str, str | bytes] = {"etc/holoscan/app.json": '{"a": 1}'}
    assert (await _inspect(harness, client, old | new)).manifests == {"/etc/holoscan/app.json": b'{"a": 1}'}


def _bytes(raw: str | bytes) -> bytes:
    return raw.encode() if isinstance(raw, str) else raw


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "manifest_missing"),
        ({"etc/holoscan/pkg.json": "{}"}, "manifest_missing"),
        ({"etc/holoscan/app.json/file": "a folder"}, "manifest_missing"),
        ({"etc/holoscan/app.json": "x" * 131_073}, "manifest_too_large"),
        ({"etc/holoscan/app.json": "x" * 100_000, "etc/holoscan/pkg.json": "x" * 100_000}, "manifest_too_large"),
    ],
    ids=["none", "no-app", "folder", "large", "large-together"],
)
async def test_images_without_usable_manifests(
    harness: DockerHarness, client: Client, files: dict[str, str | bytes], reason: str
) -> None:
    """What has no manifests, or too large ones, says so; containers that were made to look are gone."""
    with pytest.raises(MapUnreadable) as told:
        await _inspect(harness, client, files)
    assert told.value.reason == reason
    filters = {"label": "gurney.inspect"}
    assert await asyncio.to_thread(client.containers, all=True, filters=filters) == []


async def test_an_image_that_somebody_describes_needs_no_manifests(harness: DockerHarness, client: Client) -> None:
    """What it runs by itself is told, and is not run."""
    found = await _inspect(harness, client, {}, described=True)
    assert (found.manifests, found.command) == ({}, ("touch", "/ran"))


async def test_a_frozen_daemon_is_told(harness: DockerHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that keeps its connections and answers nothing is away until it answers; the agent's health says so."""
    monkeypatch.setattr(watch, "_PULSE_S", 0.1)
    monkeypatch.setattr(watch, "_ANSWER_S", 1.0)
    agent = build(Settings(data=tmp_path), runtimes=[harness.runtime])
    await asyncio.to_thread(harness.daemon.pause)
    try:
        async with asyncio.timeout(SECONDS):
            while (await agent.health()).parts["docker"] == READY:
                await asyncio.sleep(0.01)
        assert "does not answer" in str(harness.runtime.fault)
    finally:
        await asyncio.to_thread(harness.daemon.resume)
    async with asyncio.timeout(SECONDS):
        while (await agent.health()).parts["docker"] != READY:
            await asyncio.sleep(0.01)
    assert harness.runtime.fault is None


async def test_opening_without_a_daemon(tmp_path: Path) -> None:
    """A runtime opens although its daemon is not there, and says what it waits for."""
    runtime = DockerRuntime(tmp_path, node="n1", url=f"unix://{tmp_path}/nothing.sock")
    await runtime.open()
    try:
        assert "does not answer" in str(runtime.fault)
        assert await runtime.runs() == []
    finally:
        await runtime.close()


async def test_watchdog_goes_when_nothing_is_left_to_it(harness: DockerHarness) -> None:
    """What watches the leases ends when all that it knows of is dead, also without an agent that says so."""
    run = await waiting(harness)
    run.spec = replace(run.spec, lease_until=clock.monotonic() + 2)
    await harness.runtime.start(run.spec)
    (watchdog,) = _watchdogs(harness.data)
    await harness.runtime.close()
    with contextlib.closing(_Process(watchdog)) as process:
        await asyncio.wait_for(process.gone(), SECONDS)
    await harness.reopen()
    assert (await run.end()).cause == Cause.LEASE
    run.close()


def _watchdogs(data: Path) -> list[int]:
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = command.read_bytes().split(b"\0")
            if os.fsencode(data / "docker") in words and any(word.endswith(b"watchdog.py") for word in words):
                found.append(int(command.parent.name))
    return found


class _Process:
    """A process that is not our child."""

    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    async def gone(self) -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._fd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._fd)

    def close(self) -> None:
        os.close(self._fd)


@pytest.mark.needs("tmpfs")
async def test_full_disk(closed_harness: DockerHarness) -> None:
    """On a full disk no run begins and no lease is renewed; a run whose lease lapsed so did not fail of itself."""
    with SmallDisk(closed_harness.data, 16 * MIB) as disk:
        await closed_harness.open()
        try:
            run = await waiting(closed_harness)
            await closed_harness.runtime.start(replace(run.spec, lease_until=clock.monotonic() + 3))
            await run.told("ready")
            disk.fill()
            with pytest.raises(Unavailable):
                await closed_harness.runtime.lease(["job_1-1"], clock.monotonic() + 60)
            with pytest.raises(Unavailable):
                await closed_harness.runtime.start(replace(run.spec, run_id="job_2-1"))
            assert (await run.end()).cause == Cause.LEASE
            disk.empty()
            await closed_harness.runtime.start(replace(run.spec, run_id="job_2-1"))
            run.close()
        finally:
            disk.empty()
            await closed_harness.finish()


async def test_end_of_which_nothing_is_known(harness: DockerHarness, client: Client) -> None:
    """A run that ended while the daemon was away, and left no trace of how, is lost and has no exit code."""
    run = await begun(harness)
    container = client.inspect_container(name_of("job_1-1"))
    await asyncio.to_thread(harness.daemon.kill)
    pid = container["State"]["Pid"]
    shim = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    for each in (int(shim), pid):
        os.kill(each, signal.SIGKILL)
    await asyncio.to_thread(harness.daemon.start)
    end = await run.end()
    assert (end.cause, end.exit_code) == (Cause.LOST, None)
    run.close()


async def test_a_success_that_the_daemon_has_not_seen_is_none(harness: DockerHarness, client: Client) -> None:
    """A daemon that finds a container ended and not how may say 0, as Docker 20.10 does: that run is lost."""
    run = await begun(harness)
    container = client.inspect_container(name_of("job_1-1"))
    await asyncio.to_thread(harness.daemon.kill)
    os.kill(container["State"]["Pid"], signal.SIGKILL)
    kept = harness.daemon.folder / "data/containers" / container["Id"] / "config.v2.json"
    told = json.loads(kept.read_text())
    told["State"] |= {"Running": False, "Pid": 0, "ExitCode": 0, "FinishedAt": clock.now().isoformat()}
    kept.write_text(json.dumps(told))
    await asyncio.to_thread(harness.daemon.start)
    end = await run.end()
    state = (await asyncio.to_thread(client.inspect_container, container["Id"]))["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 0)
    assert (end.cause, end.exit_code) == (Cause.LOST, None)
    run.close()


async def test_a_success_that_nobody_of_ours_saw_is_one_when_the_daemon_did(harness: DockerHarness) -> None:
    """A run that ended with 0 while there was no agent is a success: the daemon remembers its end."""
    run = await begun(harness, 'echo > "$OUT/ready"; read _ < "$OUT/go"; exit 0')
    await harness.runtime.close()
    run.tell("go")
    await asyncio.sleep(1)
    harness.runtime = harness.make()
    await harness.runtime.open()
    end = await run.end()
    assert (end.cause, end.exit_code) == (Cause.EXITED, 0)
    run.close()


async def test_who_is_ended_by_somebody_else_has_not_succeeded(harness: DockerHarness, client: Client) -> None:
    """An application that is told to end, by a daemon that shuts down or a person, and ends with 0, is lost."""
    run = await begun(harness, 'trap "exit 0" TERM; echo > "$OUT/ready"; while :; do sleep 0.1; done')
    client.kill(name_of("job_1-1"), signal="SIGTERM")
    end = await run.end()
    assert (end.cause, end.exit_code) == (Cause.LOST, None)
    assert "somebody else" in end.message
    run.close()


#: As an image may have them: those by which containers of ours are told apart, and by which an end is told.
LABELS = (
    "exitCode=0",
    "gurney.pause=1",
    "gurney.inspect=1",
    "gurney.run=job_2-1",
    "gurney.house=x",
    "gurney.project=x",
)


@pytest.fixture
async def labelled(harness: DockerHarness, client: Client) -> AsyncIterator[DockerHarness]:
    """A runtime whose MAP has labels of ours."""
    await asyncio.to_thread(make_image, client, "labelled:1", FILES, [f"LABEL {each}" for each in LABELS])
    harness.urn = "urn:oci:labelled:1"
    yield harness
    await asyncio.to_thread(client.remove_image, "labelled:1", force=True)


async def test_labels_of_an_image_tell_nothing(labelled: DockerHarness) -> None:
    """A failure is one although the image says otherwise: a daemon lays its labels over what it tells of the end."""
    run = await waiting(labelled, "exit 5")
    end = await run.run()
    assert (end.cause, end.exit_code) == (Cause.EXITED, 5)
    run.close()


async def test_labels_of_an_image_make_nothing_of_a_run(labelled: DockerHarness, client: Client) -> None:
    """A run stays a run when stock is taken; its namespace is its own, and what reads its image is gone."""
    run = await begun(labelled)
    await labelled.reopen()
    runs = labelled.runtime._runs  # type: ignore[attr-defined]
    await asyncio.gather(runs._clear_readings(), *runs.removals.tasks)
    assert (await asyncio.to_thread(client.inspect_container, name_of("job_1-1")))["State"]["Running"]
    other = App(labelled, run.spec.digest, "true", "job_2-1")
    assert (await other.run()).exit_code == 0
    found = await asyncio.to_thread(client.inspect_container, name_of("job_2-1"))
    ours = await asyncio.to_thread(client.inspect_container, name_of("job_1-1"))
    assert found["HostConfig"]["NetworkMode"] != f"container:{ours['Id']}"
    run.tell("go")
    end = await run.end()
    assert (end.cause, end.exit_code) == (Cause.EXITED, 5)
    run.close()
