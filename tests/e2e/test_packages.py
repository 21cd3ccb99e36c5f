"""MAPs as the packagers of both generations leave them: registered and run unchanged, on a real Docker daemon."""

import asyncio
import json
import re
from contextlib import closing

import pytest

from gurney.testing.docker import DockerDaemon
from tests.e2e import packages, work
from tests.e2e.api import Api, Json
from tests.e2e.packages import PACKAGES
from tests.e2e.servers import Server
from tests.e2e.test_docker import register

pytestmark = [pytest.mark.needs("docker"), pytest.mark.needs("registry")]

#: These MAPs ask for a GPU, and the machine of the tests has none.
NO_GPU = {"resources": {"gpus": 0}}
HIDES = 'echo half > "$OUT/half"; exit 7'


@pytest.fixture(scope="session")
def server(docker_server: Server) -> Server:
    """A server whose agent has the daemon."""
    return docker_server


@pytest.fixture(scope="session")
def images(docker_daemon: DockerDaemon) -> dict[str, str]:
    """Name -> reference: each package, and two that are not what they should be."""
    with closing(docker_daemon.client()) as client:
        return {name: packages.make(client, name) for name in PACKAGES} | {
            "hides": packages.make(client, "holoscan-simple", "e2e-hides:1", writes=HIDES),
            "bare": packages.make(client, "monai-spleen", "e2e-bare:1", variables={"MONAI_MODELPATH": "/weights"}),
        }


async def run(api: Api, server: Server, reference: str, **options: object) -> Json:
    """Run a package to its end."""
    made = await register(api, reference)
    assert made["state"] == "ready", made["reason"]
    job = await work.submit(api, made["id"], {"series/1.dcm": "image"}, **NO_GPU, **options)
    job = await work.ended(api, job["id"])
    await work.nothing_left(server, job["id"])
    return job


async def notes(api: Api, job: Json) -> dict[str, str]:
    """Return what the application has noted of what it was given."""
    lines = (await work.log(api, job)).splitlines()
    return dict(line.split("=", 1) for line in lines)


def named(given: dict[str, str]) -> dict[str, str]:
    """Return the variables of either generation."""
    return {name: value for name, value in given.items() if name.startswith(("HOLOSCAN_", "MONAI_"))}


def own_end(daemon: DockerDaemon, image: str) -> int:
    """Return the exit code of an image that is run as it is."""
    with closing(daemon.client()) as client:
        container = client.make({"Image": image, "HostConfig": {"NetworkMode": "none"}}, "e2e-own-end")
        client.start(container)
        code = client.wait(container)["StatusCode"]
        client.remove_container(container)
    return int(code)


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.req("MAS-11", "MAS-51")
async def test_registration(api: Api, images: dict[str, str], name: str) -> None:
    """The manifests of either packager are read, kept as they are, and understood."""
    made = await register(api, images[name])
    assert made["state"] == "ready", made["reason"]
    package = PACKAGES[name]
    folder = f"/etc/{package.generation}"
    assert {each["path"]: each["content"] for each in made["manifests"]} == {
        f"{folder}/{part}.json": json.loads(packages.manifest(name, part)) for part in ("app", "pkg")
    }
    described = made["description"]
    assert (described["generation"], described["resources"]["gpus"]) == (package.generation, 1)
    assert described["input_path"] == f"/var/{package.generation}/input"
    assert described["command"][0] == "python3"


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.req("MAS-32")
async def test_a_gpu_where_there_is_none(api: Api, images: dict[str, str], name: str) -> None:
    """A job of a MAP that asks for a GPU is refused at once where no known node has one, and leaves no claim."""
    made = await register(api, images[name])
    asked = {"map": made["id"], "payload": await work.payload(api, {"a": "1"})}
    refused = (await api.post("/v1/jobs", asked, case="no node has a GPU")).must(422, "infeasible")
    assert refused.fields == {"resources.gpus"}
    assert (await api.get(f"/v1/payloads/{asked['payload']}")).json["held_by"] == []


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.req("MAS-42", "MAS-51")
async def test_run(api: Api, server: Server, images: dict[str, str], name: str) -> None:
    """The application finds input, models, user and folder as its packager promised; what it writes is all there is."""
    package = PACKAGES[name]
    job = await run(api, server, images[name], timeout_s=30)
    assert (job["state"], job["exit_code"], job["resources"]["gpus"]) == ("succeeded", 0, 0), job
    assert (await work.results(api, job)).keys() == package.results
    given = await notes(api, job)
    assert (given["uid"], given["folder"]) == (str(package.user), f"/var/{package.generation}")
    assert given["input"] == "series"
    timeout = "HOLOSCAN_TIMEOUT" if package.generation == "holoscan" else "MONAI_TIMEOUT"
    expected = {**package.variables, timeout: "30", "MONAI_TIMEOUT": "30", "MONAI_JOBID": job["id"]}
    assert named(given) == expected
    assert (given["CUDA_VISIBLE_DEVICES"], given["NVIDIA_VISIBLE_DEVICES"]) == ("", "void")
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-3]", given["TRACEPARENT"])


async def test_what_nobody_sets(api: Api, server: Server, images: dict[str, str]) -> None:
    """What neither image nor manifest says is as packagers of the generation have it; what the image says stays."""
    job = await run(api, server, images["bare"])
    own = {"MONAI_MODELPATH": "/weights", "MONAI_TIMEOUT": "86400", "MONAI_JOBID": job["id"]}
    assert named(await notes(api, job)) == PACKAGES["monai-spleen"].variables | own


async def test_an_entrypoint_that_hides_failures(
    api: Api, server: Server, images: dict[str, str], docker_daemon: DockerDaemon
) -> None:
    """An application that fails below an entrypoint which always ends with 0 has failed, with its own exit code."""
    assert await asyncio.to_thread(own_end, docker_daemon, images["hides"]) == 0
    job = await run(api, server, images["hides"])
    assert (job["state"], job["reason"]["code"], job["exit_code"]) == ("failed", "exit_nonzero", 7)
    assert await work.result(api, job, "half") == b"half\n"
    assert (await api.get(f"/v1/payloads/{job['results']}")).json["partial"] is True
