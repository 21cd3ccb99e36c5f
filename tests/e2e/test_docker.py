"""MAPs that are images, on a real Docker daemon: registered by create + copy, run as containers, one test per end."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from gurney.testing.docker import DockerDaemon, make_image
from gurney.testing.registry import Registry
from tests.e2e import work
from tests.e2e.api import Api, Json
from tests.e2e.servers import Server

pytestmark = [pytest.mark.needs("docker"), pytest.mark.needs("registry")]

OUT = "$HOLOSCAN_OUTPUT_PATH"
SHELL = ["sh", "-c", 'exec sh "$HOLOSCAN_INPUT_PATH/run.sh"']


def image_files(app: Mapping[str, Any], pkg: Mapping[str, Any], folder: str = "etc/holoscan") -> dict[str, str]:
    """Return the manifests of an image."""
    return {f"{folder}/app.json": json.dumps(app), f"{folder}/pkg.json": json.dumps(pkg)}


@pytest.fixture(scope="session")
def images(docker_daemon: DockerDaemon, registry: Registry) -> dict[str, str]:
    """Name -> reference of the images: `shell` runs its input, in the registry and nowhere else."""
    small = {"resources": {"cpu": 0.5, "memory": "64Mi"}}
    app = {"command": json.dumps(SHELL), "input": {"path": "input/"}, "output": {"path": "output/"}}
    monai = {"command": "sh -c 'cat $MONAI_INPUTPATH/in > $MONAI_OUTPUTPATH/out'", "input": {"path": "in"}}
    made = {
        "e2e-shell:1": (image_files(app, small), ["USER 1000:1000", "WORKDIR /opt/app"]),
        "e2e-monai:1": (image_files(monai | {"output": {"path": "out"}}, small, "etc/monai"), []),
        "e2e-nowhere:1": (image_files(app | {"command": '["no-such-program"]'}, small), []),
        "e2e-plain:1": (image_files(app | {"command": '["/etc/holoscan/app.json"]'}, small), []),
        "e2e-without:1": ({"opt/readme": "nothing"}, []),
        "e2e-broken:1": ({"etc/holoscan/app.json": "{", "etc/holoscan/pkg.json": "{}"}, []),
        "e2e-silent:1": (image_files({**app, "command": ""}, small), []),
        "e2e-large:1": (image_files(app | {"note": "x" * 200_000}, small), []),
    }
    client = docker_daemon.client()
    try:
        for name, (files, changes) in made.items():
            make_image(client, name, files, changes)
        shell = registry.push(client, "e2e-shell:1", "e2e-shell")
        for name in ("e2e-shell:1", shell):
            client.remove_image(name)
        return {name.removeprefix("e2e-").removesuffix(":1"): name for name in made} | {"shell": shell}
    finally:
        client.close()


@pytest.fixture(scope="session")
def server(docker_server: Server) -> Server:
    """A server whose agent has the daemon."""
    return docker_server


async def register(api: Api, reference: str, **options: Any) -> Json:
    """Register an image and return it when it was read."""
    made = (await api.post("/v1/maps", {"urn": reference, **options})).must(202).json
    return await work.settled(api, made["id"])


async def run(api: Api, server: Server, reference: str, script: str = "", **options: Any) -> Json:
    """Run an image to its end, and hold the host against what it may not have any more."""
    made = await register(api, reference)
    assert made["state"] == "ready", made["reason"]
    job = await work.submit(api, made["id"], {"run.sh": script, "in": "input\n"}, **options)
    job = await work.ended(api, job["id"])
    await work.nothing_left(server, job["id"])
    return job


@pytest.mark.req("MAS-10", "MAS-11")
async def test_registration(api: Api, images: dict[str, str]) -> None:
    """An image is registered by its reference: pulled, pinned by the registry's digest, its manifests kept."""
    made = (await api.post("/v1/maps", {"urn": images["shell"]})).must(202).json
    assert made["state"] == "registering"
    found = await work.settled(api, made["id"])
    assert (found["state"], found["urn"]) == ("ready", f"urn:oci:{images['shell']}")
    assert found["digest"].startswith("sha256:")
    assert {each["path"] for each in found["manifests"]} == {"/etc/holoscan/app.json", "/etc/holoscan/pkg.json"}
    assert found["description"]["command"] == SHELL
    assert found["description"]["input_path"] == "/var/holoscan/input"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("without", "manifest_missing"),
        ("broken", "manifest_broken"),
        ("silent", "no_command"),
        ("large", "manifest_too_large"),
        ("absent", "not_found"),
    ],
)
@pytest.mark.req("MAS-11")
async def test_what_cannot_be_registered(
    api: Api, images: dict[str, str], registry: Registry, name: str, code: str
) -> None:
    """An image without manifests, with broken or too large ones, or that is nowhere is invalid, with the reason."""
    found = await register(api, images.get(name, f"{registry.address}/absent:1"))
    assert (found["state"], found["reason"]["code"]) == ("invalid", code)


@pytest.mark.req("MAS-42", "MAS-51")
async def test_success(api: Api, server: Server, images: dict[str, str]) -> None:
    """A container finds exactly the payload's files; what it writes are the results, what it says is the log."""
    script = f"ls -1 $HOLOSCAN_INPUT_PATH; mkdir {OUT}/sub; cat $HOLOSCAN_INPUT_PATH/in > {OUT}/sub/out"
    job = await run(api, server, images["shell"], script)
    assert (job["state"], job["exit_code"], job["reason"]) == ("succeeded", 0, None), job
    assert (await work.results(api, job)).keys() == {"sub/out"}
    assert await work.result(api, job, "sub/out") == b"input\n"
    assert await work.log(api, job) == "in\nrun.sh\n"


@pytest.mark.req("MAS-51")
async def test_older_generation(api: Api, server: Server, images: dict[str, str]) -> None:
    """An image of the older generation runs with the paths under its own names."""
    job = await run(api, server, images["monai"])
    assert job["state"] == "succeeded", job
    assert await work.result(api, job, "out") == b"input\n"


async def test_static_content(api: Api, server: Server, images: dict[str, str]) -> None:
    """What a MAP brings along is mounted where it says, read-only, beside the input."""
    models = await work.payload(api, {"net/weights": b"w" * 1000})
    command = ["sh", "-c", "wc -c < /opt/models/net/weights; touch /opt/models/x 2>&1; echo $GURNEY_CONTENT_PATH"]
    content = {"command": command, "content": {"payload": models, "path": "/opt/models"}}
    made = await register(api, images["without"], description=content)
    assert made["state"] == "ready", made
    job = await work.ended(api, (await work.submit(api, made["id"]))["id"])
    assert job["state"] == "succeeded", job
    lines = (await work.log(api, job)).splitlines()
    assert lines == ["1000", "touch: /opt/models/x: Read-only file system", "/opt/models"]
    await work.nothing_left(server, job["id"])


@pytest.mark.parametrize(("name", "code"), [("nowhere", 127), ("plain", 126)])
async def test_no_program(api: Api, server: Server, images: dict[str, str], name: str, code: int) -> None:
    """A command that is not found ends with 127, one that cannot be executed with 126, as in a shell."""
    job = await run(api, server, images[name])
    assert (job["state"], job["reason"]["code"], job["exit_code"]) == ("failed", "exit_nonzero", code)


async def test_cancel(api: Api, server: Server, images: dict[str, str]) -> None:
    """A container that is canceled gets SIGTERM and the time to say goodbye."""
    made = await register(api, images["shell"])
    script = "trap 'echo goodbye; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    job = await work.submit(api, made["id"], {"run.sh": script})
    async with api.events(f"/v1/jobs/{job['id']}/logs?follow=true") as events:
        async for event in events:
            if "ready" in event.data.get("text", ""):
                break
    (await api.post(f"/v1/jobs/{job['id']}/cancel")).must(202)
    job = await work.ended(api, job["id"])
    assert (job["state"], await work.log(api, job)) == ("canceled", "ready\ngoodbye\n")
    await work.nothing_left(server, job["id"])


@pytest.fixture
def gone(docker_daemon: DockerDaemon, registry: Registry) -> Iterator[tuple[str, Callable[[], None]]]:
    """An image's reference, and what takes the image from the registry and from the host."""
    app = {"command": json.dumps(SHELL), "input": {"path": "input/"}, "output": {"path": "output/"}, "note": "gone"}
    client = docker_daemon.client()
    image = make_image(client, "e2e-gone:1", image_files(app, {"resources": {"cpu": 0.5, "memory": "64Mi"}}))
    reference = registry.push(client, "e2e-gone:1", "e2e-gone")

    def remove() -> None:
        pulled = (client.image(image) or {})["RepoDigests"]
        registry.remove("e2e-gone", next(each for each in pulled if each.startswith(registry.address)))
        client.remove_image(image, force=True)

    yield reference, remove
    client.close()


async def test_image_unavailable(api: Api, server: Server, gone: tuple[str, Callable[[], None]]) -> None:
    """A job whose image can be had nowhere any more is tried as often as it may be, and ends as `image_unavailable`."""
    reference, remove = gone
    made = await register(api, reference)
    assert made["state"] == "ready", made["reason"]
    await asyncio.to_thread(remove)
    job = await work.ended(api, (await work.submit(api, made["id"], {"run.sh": "true"}))["id"])
    assert (job["state"], job["exit_code"]) == ("failed", None), job
    assert job["reason"]["code"] == "image_unavailable"
    assert job["attempt"] == 3
    await work.nothing_left(server, job["id"])
