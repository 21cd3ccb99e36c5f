"""No-op container jobs through the whole embedded server, beside `docker run --rm` and a bare loop over Docker's API.

    .venv/bin/python bench/containers.py [--rounds 15] [--jobs 100]

Prints the wall time of one job from REST submit to its end over that of `docker run --rm --network none` of the same
image, and the jobs per second of a queue of jobs over those of the best bare loop: create, start, wait, remove, several
at once, of the same container, in a network namespace that was made before. Needs root and dockerd, which it starts
for itself.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from figures import HEAD, ratio, row

from gurney.client import AsyncClient
from gurney.runtime.docker.container import Image, Means, config
from gurney.runtime.docker.daemon import Client
from gurney.runtime.port import RunSpec
from gurney.testing.docker import DockerDaemon, make_image
from gurney.testing.embedded import EmbeddedProcess

IMAGE = "bench-noop:1"
MANIFEST = {"command": '["true"]', "input": {"path": "input/"}, "output": {"path": "output/"}}
#: Enough for a container to begin without being held back by its own share of a core.
SMALL = {"resources": {"cpu": 0.25, "memory": "64Mi"}}


def docker_run(daemon: DockerDaemon) -> None:
    command = ["docker", "-H", daemon.url, "run", "--rm", "--network", "none", IMAGE, "true"]
    subprocess.run(command, check=True)


async def job(client: AsyncClient, map_id: str, payload: str) -> None:
    made = await client.jobs.create(map=map_id, payload=payload)
    ended = await client.jobs.get(made["id"], wait_s=60)
    while ended["state"] not in {"succeeded", "failed", "canceled"}:
        ended = await client.jobs.get(made["id"], wait_s=60)
    if ended["state"] != "succeeded":
        sys.exit(f"a no-op job ended as {ended['state']}: {ended['reason']}")


def body_of(network: str, folder: Path) -> dict[str, Any]:
    """Return the container that a job gets, too."""
    folders = [folder / "in", folder / "out"]
    for each in folders:
        each.mkdir()
    spec = RunSpec(
        run_id="bench",
        job_id="bench",
        attempt=1,
        node="bench",
        urn=f"urn:oci:{IMAGE}",
        digest="",
        generation="holoscan",
        command=("true",),
        environment={},
        working_directory=None,
        input_path="/var/holoscan/input",
        output_path="/var/holoscan/output",
        input_dir=folders[0],
        output_dir=folders[1],
        cpu=0.25,
        memory=64 << 20,
    )
    return config(spec, Image(IMAGE, "", 0, 0, ""), Means(network, 1.0, None, {}))


def loop(client: Client, body: dict[str, Any], count: int, width: int) -> float:
    """Return containers per second of a bare loop."""

    def one(_: int) -> None:
        container = client.make(body, f"bench-{uuid.uuid4().hex}")
        client.start(container)
        client.wait(container)
        client.remove_container(container)

    began = time.perf_counter()
    with ThreadPoolExecutor(width) as pool:
        list(pool.map(one, range(count)))
    return count / (time.perf_counter() - began)


def timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


async def latencies(client: AsyncClient, map_id: str, payload: str, daemon: DockerDaemon, rounds: int) -> None:
    """Print both medians, taken in turns."""
    ours, theirs = [], []
    await job(client, map_id, payload)
    for _ in range(rounds):
        began = time.perf_counter()
        await job(client, map_id, payload)
        ours.append((time.perf_counter() - began) * 1000)
        theirs.append(await asyncio.to_thread(timed, lambda: docker_run(daemon)))
    print(row("one job", ours, "ms"))
    print(row("docker run --rm", theirs, "ms"))
    print(ratio("a job over docker run", ours, theirs))


async def rates(client: AsyncClient, map_id: str, payload: str, docker: Client, jobs: int) -> None:
    """Print the rate of a queue of jobs, and those of bare loops before and after it."""
    pause = {"Image": "gurney-pause:1", "HostConfig": {"NetworkMode": "none"}}
    network = docker.make(pause, "bench-pause")
    docker.start(network)
    body = body_of(network, Path(tempfile.mkdtemp(prefix="gurney-bench-")))
    widths = (2, 4, 8)
    bare = {width: [await asyncio.to_thread(loop, docker, body, jobs, width)] for width in widths}
    began = time.perf_counter()
    await asyncio.gather(*(job(client, map_id, payload) for _ in range(jobs)))
    ours = jobs / (time.perf_counter() - began)
    for width in widths:
        bare[width].append(await asyncio.to_thread(loop, docker, body, jobs, width))
        print(row(f"bare loop, {width} at once", bare[width], "1/s"))
    print(row("jobs", [ours], "1/s"))
    print(ratio("jobs over the best bare loop", [ours], [max(map(statistics.mean, bare.values()))]))


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--jobs", type=int, default=100)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="gurney-bench-"))
    with DockerDaemon(folder / "docker") as daemon:
        docker = daemon.client()
        manifests = {
            f"etc/holoscan/{name}.json": json.dumps(each) for name, each in (("app", MANIFEST), ("pkg", SMALL))
        }
        make_image(docker, IMAGE, manifests)
        environment = {"GURNEY_DOCKER_URL": daemon.url, "GURNEY_LOG_LEVEL": os.environ.get("GURNEY_LOG_LEVEL", "info")}
        with EmbeddedProcess(folder / "data", folder, environment) as server:
            async with AsyncClient(server.url, server.token) as client:
                made = await client.maps.register(IMAGE)
                payload = await client.payloads.create()
                made = await client.maps.settled(made["id"])
                print(HEAD)
                await latencies(client, made["id"], payload["id"], daemon, options.rounds)
                await rates(client, made["id"], payload["id"], docker, options.jobs)
        docker.close()


if __name__ == "__main__":
    asyncio.run(main())
