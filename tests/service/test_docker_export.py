"""Images without manifests where we look: run once to export them, sealed off, and gone afterwards."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from gurney.errors import MapUnreadable
from gurney.runtime.docker import export, manifests
from gurney.runtime.docker.daemon import Client
from gurney.runtime.docker.runtime import DockerRuntime
from gurney.runtime.port import Inspection
from gurney.testing.docker import DockerDaemon, make_image
from services.map.manifest import read
from tests.contract.runtime_harness import SECONDS

pytestmark = pytest.mark.needs("docker")

APP = {"command": '["sh", "-c", "true"]', "input": {"path": "input/"}, "output": {"path": "output/"}}
TEXTS = {"app.json": json.dumps(APP), "pkg.json": "{}"}
#: Where an image of another packager may have its manifests.
HIDDEN = {f"opt/manifests/{name}": text for name, text in TEXTS.items()}
HOLOSCAN, MONAI = "ENV HOLOSCAN_WORKDIR=/var/holoscan", "ENV MONAI_WORKDIR=/var/monai"
#: As the packager of the newer generation has it: one folder is enough for it, and nothing else is exported then.
TOOLS = """#!/bin/sh
[ "$1" = extract ] || exit 9
cd /var/run/holoscan/export || exit 8
if [ -d config ]; then test -w config && cp /opt/manifests/* config; else cp -r /opt/models models; fi
"""
#: As the executor of the older one: it exports where something is mounted, and else runs the application.
EXECUTOR = """#!/bin/sh
if [ -d /var/run/monai/export/config ]; then cp /opt/manifests/* /var/run/monai/export/config; else exit 9; fi
"""

Inspect = Callable[..., Awaitable[Inspection]]


@pytest.fixture
def client(docker_daemon: DockerDaemon) -> Iterator[Client]:
    """A client of our own to look at the daemon."""
    made = docker_daemon.client()
    yield made
    made.close()


@pytest.fixture
async def runtime(tmp_path: Path, docker_daemon: DockerDaemon) -> AsyncIterator[DockerRuntime]:
    """An open runtime."""
    made = DockerRuntime(tmp_path / "data", node="n1", url=docker_daemon.url)
    await made.open()
    yield made
    await made.close()
    await asyncio.to_thread(docker_daemon.clean)


@pytest.fixture
async def inspect(runtime: DockerRuntime, client: Client) -> Inspect:
    """Make an image whose program is a script, inspect it, and look at what is left."""

    async def made(script: str, *changes: str, described: bool = False, passwords: int = 1) -> Inspection:
        name = f"export-{os.urandom(4).hex()}:1"
        passwd = "root:x:0:0::/:/bin/sh\napp:x:1000:1001::/:/bin/sh\n"
        files = {**HIDDEN, "*opt/tool": script, "etc/passwd": passwd * passwords}
        changes = (*changes, 'ENTRYPOINT ["/opt/tool"]')
        await asyncio.to_thread(make_image, client, name, files, changes)
        try:
            return await runtime.inspect(f"urn:oci:{name}", described=described)
        finally:
            assert await asyncio.to_thread(_left, client) == ([], [])
            await asyncio.to_thread(client.remove_image, name)

    return made


def _left(client: Client) -> tuple[list[str], list[str]]:
    """Return containers and volumes of inspections."""
    containers = client.containers(all=True, filters={"label": "gurney.inspect"})
    return [each["Id"] for each in containers], [each["Name"] for each in client.volumes()["Volumes"] or ()]


@pytest.mark.parametrize(
    ("script", "changes", "folder", "generation"),
    [
        (TOOLS, (HOLOSCAN, "USER 1000:1000"), "/var/run/holoscan/export/config", "holoscan"),
        (TOOLS, (HOLOSCAN, "USER app"), "/var/run/holoscan/export/config", "holoscan"),
        (EXECUTOR, (MONAI,), "/var/run/monai/export/config", "monai"),
        (TOOLS, (MONAI, HOLOSCAN), "/var/run/holoscan/export/config", "holoscan"),
        (TOOLS.replace("config", "none"), (HOLOSCAN,), "", ""),
        (
            "#!/bin/sh\ncp /opt/manifests/* /var/run/holoscan/export",
            (HOLOSCAN,),
            "/var/run/holoscan/export",
            "holoscan",
        ),
    ],
    ids=["newer", "named-user", "older", "both", "no-folder", "plain"],
)
async def test_manifests_that_an_image_exports(
    inspect: Inspect, script: str, changes: tuple[str, ...], folder: str, generation: str
) -> None:
    """An image of either generation exports its manifests as its packager has it do, as its own user."""
    if not folder:
        with pytest.raises(MapUnreadable, match="exit code 1"):
            await inspect(script, *changes)
        return
    found = await inspect(script, *changes)
    assert found.manifests == {f"{folder}/{name}": text.encode() for name, text in TEXTS.items()}
    assert found.command == ("/opt/tool",)
    _, description = read({path: raw.decode() for path, raw in found.manifests.items()})
    assert (description.generation, description.command) == (generation, ("sh", "-c", "true"))


async def test_an_image_whose_users_are_too_many(inspect: Inspect) -> None:
    """Files of users that nobody would read tell nothing, and are no fault of ours."""
    with pytest.raises(MapUnreadable) as told:
        await inspect(TOOLS, HOLOSCAN, "USER app", passwords=40_000)
    assert told.value.reason == "manifest_missing"


@pytest.mark.parametrize(
    ("script", "changes", "described"),
    [(TOOLS, (), False), (TOOLS, (HOLOSCAN,), True), ("#!/bin/sh\ntouch /nothing", ("ENV PATH=/bin",), False)],
    ids=["unknown-generation", "described", "neither"],
)
async def test_who_is_not_run(
    inspect: Inspect, monkeypatch: pytest.MonkeyPatch, script: str, changes: tuple[str, ...], *, described: bool
) -> None:
    """An image is not run that does not tell its generation, or that somebody describes."""
    monkeypatch.setattr(export, "_run", None)
    if described:
        assert (await inspect(script, *changes, described=True)).manifests == {}
    else:
        with pytest.raises(MapUnreadable) as told:
            await inspect(script, *changes)
        assert told.value.reason == "manifest_missing"


async def test_an_image_without_a_program(runtime: DockerRuntime, client: Client) -> None:
    """An image that has neither entrypoint nor command is read all the same, and run in no case."""
    name = f"plain-{os.urandom(4).hex()}"
    files = {f"etc/monai/{each}": text for each, text in TEXTS.items()}
    await asyncio.to_thread(make_image, client, f"{name}:1", files)
    await asyncio.to_thread(make_image, client, f"{name}:2", HIDDEN, [MONAI])
    found = await runtime.inspect(f"urn:oci:{name}:1")
    assert found.manifests.keys() == {f"/{path}" for path in files}
    assert not found.command
    with pytest.raises(MapUnreadable) as told:
        await runtime.inspect(f"urn:oci:{name}:2")
    assert told.value.reason == "manifest_missing"
    for tag in (1, 2):
        await asyncio.to_thread(client.remove_image, f"{name}:{tag}")


#: Says all that it can do, in its manifest.
SNOOP = """#!/bin/sh
touch /root-is-open /etc/x /vol/x 2> /dev/null
left=$(echo /root-is-open /etc/x /vol/x | tr ' ' '\\n' | while read f; do [ -e $f ] && echo $f; done)
rights=$(grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status | tr -d '[:space:]')
memory=$(cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2> /dev/null)
pids=$(cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2> /dev/null)
net=$(ls /sys/class/net | tr '\\n' ' ')
cat > /var/run/monai/export/config/app.json << END
{"command": "true", "user": "$(id -u)", "left": "$left", "rights": "$rights", "memory": "$memory", "pids": "$pids",
 "net": "$net", "gpu": "$NVIDIA_VISIBLE_DEVICES"}
END
"""


async def test_what_an_export_may(inspect: Inspect) -> None:
    """What is run has no network, no rights, limits, and nothing to write that outlives it, volumes included."""
    found = await inspect(SNOOP, MONAI, "VOLUME /vol")
    (told,) = [json.loads(raw) for raw in found.manifests.values()]
    assert told == {
        "command": "true",
        "user": "0",
        "left": "",
        "rights": "CapEff:0000000000000000CapBnd:0000000000000000NoNewPrivs:1",
        "memory": str(256 << 20),
        "pids": "128",
        "net": "lo ",
        "gpu": "void",
    }


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("ln -s /etc/passwd app.json", "manifest_missing"),
        ("ln -s ../../../../../../../proc/1/environ app.json", "manifest_missing"),
        ("mkdir app.json", "manifest_missing"),
        ("mkfifo app.json", "manifest_missing"),
        ("head -c 131073 /dev/zero > app.json", "manifest_too_large"),
        ("echo {} > app.json; head -c 50000000 /dev/zero > pkg.json", "manifest_too_large"),
        ("i=0; while mkdir d; do cd d; done; exit 3", "manifest_missing"),
        ("exit 4", "manifest_missing"),
    ],
    ids=["link", "link-to-proc", "folder", "pipe", "large", "endless", "deep", "nothing"],
)
async def test_exports_that_are_no_manifests(inspect: Inspect, script: str, reason: str) -> None:
    """Links lead nowhere, and what is too large or no file is refused; it never fills the disk."""
    with pytest.raises(MapUnreadable) as told:
        await inspect(f"#!/bin/sh\ncd /var/run/monai/export/config\n{script}", MONAI)
    assert told.value.reason == reason


async def test_a_program_that_cannot_be_run(inspect: Inspect) -> None:
    """A program that does not begin is told as an image that has exported nothing."""
    with pytest.raises(MapUnreadable, match="exported none") as told:
        await inspect("#!/no/such/shell", MONAI)
    assert told.value.reason == "manifest_missing"


async def test_an_export_without_end(inspect: Inspect, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that does not end is killed when its time is over, although it has exported and ignores signals."""
    monkeypatch.setattr(export, "TIMEOUT_S", 0.5)
    script = "#!/bin/sh\ntrap '' TERM\ncp /opt/manifests/* /var/run/monai/export/config\nwhile :; do sleep 0.1; done"
    with pytest.raises(MapUnreadable, match="took over") as told:
        await inspect(script, MONAI)
    assert told.value.reason == "manifest_missing"


async def _until_left(client: Client, containers: int, volumes: int) -> None:
    async with asyncio.timeout(SECONDS):
        while True:
            left = [len(each) for each in await asyncio.to_thread(_left, client)]
            if left[0] <= containers and left[1] <= volumes:
                return
            await asyncio.sleep(0.05)


async def test_an_export_under_which_the_daemon_is_killed(
    runtime: DockerRuntime, client: Client, docker_daemon: DockerDaemon
) -> None:
    """What runs on is killed and removed when the daemon is back; its memory perhaps at the next."""
    script = "#!/bin/sh\nwhile :; do sleep 0.1; done"
    await asyncio.to_thread(make_image, client, "endless:1", {"*tool": script}, [MONAI, 'ENTRYPOINT ["/tool"]'])
    asked = asyncio.create_task(runtime.inspect("urn:oci:endless:1"))
    filters = {"label": "gurney.inspect", "ancestor": "endless:1", "status": "running"}
    async with asyncio.timeout(SECONDS):
        while not await asyncio.to_thread(client.containers, filters=filters):
            await asyncio.sleep(0.02)
    await asyncio.to_thread(docker_daemon.kill)
    assert isinstance((await asyncio.gather(asked, return_exceptions=True))[0], Exception)
    await asyncio.to_thread(docker_daemon.start)
    await _until_left(client, 0, 1)
    await asyncio.to_thread(docker_daemon.kill)
    await asyncio.to_thread(docker_daemon.start)
    await _until_left(client, 0, 0)
    await asyncio.to_thread(client.remove_image, "endless:1")


async def test_stock_that_is_taken_during_an_export(inspect: Inspect, runtime: DockerRuntime, client: Client) -> None:
    """What is in use by an inspection is no orphan when the daemon is back after a moment."""
    script = "#!/bin/sh\nsleep 1.5\ncp /opt/manifests/* /var/run/monai/export/config"
    asked = asyncio.ensure_future(inspect(script, MONAI))
    async with asyncio.timeout(SECONDS):
        while len(await asyncio.to_thread(client.containers, filters={"label": "gurney.inspect"})) < 2:
            await asyncio.sleep(0.02)
    await asyncio.to_thread(runtime._runs._readers.clear, client)
    assert (await asked).manifests


async def test_what_a_killed_agent_left(runtime: DockerRuntime, client: Client, tmp_path: Path) -> None:
    """At its next start an agent removes what its inspections left, running or not; those of others stay."""
    await asyncio.to_thread(make_image, client, "left:1", {}, ['ENTRYPOINT ["sleep", "1000"]', "VOLUME /data"])
    ours = runtime._host.house.labels
    for number, labels in enumerate((ours, ours, {"gurney.house": "other"})):
        body = {"Image": "left:1", "Labels": {**labels, "gurney.inspect": "1"}}
        made = await asyncio.to_thread(client.make, body, f"left-{number}")
        if number:
            await asyncio.to_thread(client.start, made)
    await asyncio.to_thread(client.create_volume, labels=ours)
    await runtime.close()
    again = DockerRuntime(tmp_path / "data", node="n1", url=runtime._daemon.url)
    await again.open()
    await _until_left(client, 1, 1)
    assert [each["Names"] for each in await asyncio.to_thread(client.containers)] == [["/left-2"]]
    await again.close()
    await asyncio.to_thread(client.remove_container, "left-2", v=True, force=True)
    await asyncio.to_thread(client.remove_image, "left:1")


def test_the_limit_is_that_of_manifests_that_are_read() -> None:
    """The memory into which an image exports holds more than is allowed, so that too much is told as such."""
    assert export._SPACE > manifests.LIMIT
