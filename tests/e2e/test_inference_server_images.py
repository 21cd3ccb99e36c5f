"""InferenceServer's models as they are in the field: images without manifests, run by a real Docker daemon."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import pytest

from gurney.testing.docker import DockerDaemon, make_image
from gurney.testing.registry import Registry
from tests.e2e import work
from tests.e2e.api import Api, Json
from tests.e2e.inference_server import ALIVE, FAILED, InferenceServer, form, packed
from tests.e2e.servers import Server
from tests.e2e.test_containers import containers
from tests.e2e.zips import unpacked

pytestmark = [pytest.mark.needs("docker"), pytest.mark.needs("registry"), pytest.mark.timeout(180)]

SHELL = "e2e-inference:1"
#: Reference -> what it is: its own command alone says what runs.
IMAGES = {
    SHELL: ['CMD ["sh", "/input/run.sh"]'],
    "e2e-inference-entry:1": ["WORKDIR /opt/app", "ENV ORGAN=liver", 'ENTRYPOINT ["sh"]', 'CMD ["own.sh", "argument"]'],
    "e2e-inference-user:1": ["USER 1000:1000", 'CMD ["sh", "/input/run.sh"]'],
    "e2e-inference-silent:1": ['CMD ["true"]'],
    "e2e-inference-without:1": [],
}
OWN = 'echo "$ORGAN $1 $(pwd)" > /output/told; cat /input/in/a.dcm /model/weights >> /output/told'


@pytest.fixture(scope="session")
def server(docker_server: Server, docker_daemon: DockerDaemon) -> Server:
    """A server whose agent has the daemon, which has the images."""
    with closing(docker_daemon.client()) as client:
        for name, changes in IMAGES.items():
            make_image(client, name, {"opt/app/own.sh": OWN}, changes)
    return docker_server


async def job_of(native: Api, told: Json) -> Json:
    """Return the job of a task."""
    for job in await native.all("/v1/jobs?label=inference-server%3Dtask"):
        if job["labels"]["inference-server.id"].startswith(f"task-{told['id']}-"):
            return job
    raise AssertionError("the task has no job")


@pytest.mark.req("INF-01", "INF-02", "INF-03")
async def test_a_model_finds_its_folders(inference: InferenceServer, native: Api, server: Server) -> None:
    """/input and /model cannot be written, /output can, whose nested files and empty folders come back."""
    script = """
        exec > /output/told 2>&1
        touch /input/x; rm /input/run.sh; touch /model/x
        cat /model/run.sh /input/in/a.dcm; echo; echo x > /written && echo root
        mkdir -p /output/a/b/c /output/empty/inner; cp -r /input/in /output/a/b/in
    """
    model = await inference.model(SHELL, packed("weights"))
    uid = await inference.task(model, packed(script))
    found = unpacked((await inference.output(uid)).must(200).body)
    told = found.pop("told").decode().splitlines()
    assert ["Read-only file system" in line for line in told[:3]] == [True] * 3, told
    assert told[3:] == ["weightsZZKEPTZZ", "root"]
    assert found == {
        "a/b/c/": b"",
        "a/b/in/a.dcm": b"ZZKEPTZZ",
        "a/b/in/ZZKEPTZZ/Müller.dcm": b"ZZKEPTZZ" * 9,
        "empty/inner/": b"",
    }
    job = await job_of(native, await inference.told(uid))
    await work.nothing_left(server, job["id"])
    async with asyncio.timeout(work.PATIENCE_S):
        while (await native.get(f"/v1/payloads/{job['payload']}", case="of a task that is over")).status != 404:
            await asyncio.sleep(0.02)
    (await inference.output(uid)).must(200)


@pytest.mark.req("INF-01", "INF-03")
async def test_what_runs_is_the_image_s_own_command(inference: InferenceServer) -> None:
    """With its entrypoint, arguments, variables and working directory, task after task beside the same content."""
    content = packed(files={"weights": "w"})
    model = await inference.model("e2e-inference-entry:1", content)
    for _ in range(2):
        uid = await inference.task(model, packed())
        assert unpacked((await inference.output(uid)).must(200).body) == {"told": b"liver argument /opt/app\nZZKEPTZZw"}


async def test_a_user_of_the_image_may_write_its_output(inference: InferenceServer) -> None:
    """An image that does not run as root reads its input and writes its output all the same."""
    script = "id -u > /output/told; cat /input/in/a.dcm /model/run.sh >> /output/told"
    uid = await inference.task(await inference.model("e2e-inference-user:1", packed("weights")), packed(script))
    assert unpacked((await inference.output(uid)).must(200).body) == {"told": b"1000\nZZKEPTZZweights"}


@pytest.mark.req("INF-02")
async def test_a_model_that_writes_nothing_has_an_empty_output(inference: InferenceServer) -> None:
    """200 with an archive in which nothing is."""
    uid = await inference.task(await inference.model("e2e-inference-silent:1"), packed())
    assert unpacked((await inference.output(uid)).must(200).body) == {}


@pytest.mark.req("INF-02")
async def test_a_model_that_fails_is_told(inference: InferenceServer, native: Api) -> None:
    """552, and whoever runs the server finds why: the exit code and the log."""
    uid = await inference.task(await inference.model(SHELL), packed("echo out of weights; exit 7"))
    (await inference.output(uid)).must(FAILED)
    job = await job_of(native, await inference.told(uid))
    assert (job["reason"]["code"], job["exit_code"]) == ("exit_nonzero", 7)
    assert await work.log(native, job) == "out of weights\n"


@pytest.mark.parametrize("tag", ["absent", "away", "without"])
@pytest.mark.req("INF-02")
async def test_an_image_that_cannot_be_had_fails_its_tasks(
    inference: InferenceServer, registry: Registry, tag: str
) -> None:
    """551, then 552: an image that its registry has not, whose registry is away, or that has no command."""
    tags: dict[str, Any] = {"absent": f"{registry.address}/absent:1", "away": "127.0.0.1:9/away:1"}
    model = await inference.model(tags.get(tag, "e2e-inference-without:1"))
    uid = await inference.task(model, packed())
    statuses: list[int] = []
    async with asyncio.timeout(work.PATIENCE_S):
        while not statuses or statuses[-1] == ALIVE:
            statuses.append((await inference.public("GET", f"/api/tasks/{uid}")).status)
            await asyncio.sleep(0.01)
    assert set(statuses) <= {ALIVE, FAILED}
    assert statuses[-1] == FAILED


@pytest.mark.req("INF-01")
async def test_a_model_that_needs_a_gpu_fails_where_there_is_none(inference: InferenceServer) -> None:
    """552, while one that needs none runs."""
    needs = await inference.task(await inference.model(SHELL, use_gpu="true"), packed("true"))
    needs_none = await inference.task(await inference.model(SHELL, use_gpu="false"), packed("true"))
    (await inference.output(needs)).must(FAILED)
    (await inference.output(needs_none)).must(200)


async def test_a_running_task_is_ended(inference: InferenceServer, native: Api, docker_daemon: DockerDaemon) -> None:
    """Who deletes it on the public listener ends its container."""
    uid = await inference.task(await inference.model(SHELL), packed("sleep 1000"))
    told = await inference.until(uid, 2)
    job = await job_of(native, told)
    (await inference.public("DELETE", f"/api/tasks/{uid}")).must(200)
    async with asyncio.timeout(work.PATIENCE_S):
        while await asyncio.to_thread(containers, docker_daemon, job["id"]):
            await asyncio.sleep(0.02)


@pytest.fixture
async def slow_registry() -> AsyncIterator[str]:
    """The address of a registry that takes every question and answers none."""
    over = asyncio.Event()

    async def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as listening:
        yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        over.set()


@pytest.mark.req("INF-02", "INF-11")
async def test_while_an_image_is_pulled_its_tasks_are_alive(inference: InferenceServer, slow_registry: str) -> None:
    """They can be deleted, and somebody else can do their work: his output counts, whatever he says beside it."""
    model = await inference.model(f"{slow_registry}/slow:1")
    deleted, *others = [await inference.task(model, packed()) for _ in range(4)]
    for uid in (deleted, *others):
        (await inference.public("GET", f"/api/tasks/{uid}")).must(ALIVE)
    assert (await inference.private("DELETE", f"/api/tasks/{deleted}")).must(200).json["status"] == 0

    async def worked(uid: str) -> None:
        body = packed(uid)
        (await inference.private("PUT", f"/api/tasks/?uid={uid}&status=1")).must(200)
        (await inference.private("POST", f"/api/tasks/outputs/{uid}", data=form(body))).must(200)
        async with asyncio.timeout(work.PATIENCE_S):
            while (await inference.told(uid))["input_volume_id"] is not None:  # its input goes, whatever the image does
                await asyncio.sleep(0.02)
        assert (await inference.public("GET", f"/api/tasks/{uid}")).must(200).body == body

    await asyncio.gather(*(worked(uid) for uid in others))
