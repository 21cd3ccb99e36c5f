"""Registers images that lie on the node, and stages a series from MinIO into a container, each beside the bare thing.

    .venv/bin/python bench/maps.py [--rounds 15] [--files 500] [--megabytes 260] [--runs 5]

Registration: from POST to `ready`, as a client sees it who asks every 5 ms, beside a bare create, copy of both
manifests and remove through Docker's SDK. Staging: the job's own phase `staging`, through the stack with one agent,
beside a download of the same objects over signed URLs by threads that hash and write to files; the best of several
widths counts. Both in turn. Needs root and dockerd, which it starts for itself.
"""

import argparse
import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

from figures import HEAD, ratio, row

from gurney.client import AsyncClient
from gurney.objects.choice import objects_of
from gurney.runtime.docker.daemon import Client
from gurney.settings import Settings
from gurney.testing.docker import DockerDaemon, make_image
from gurney.testing.embedded import EmbeddedProcess
from gurney.testing.stack import Stack

IMAGE = "bench-map:1"
FOLDER = "etc/holoscan"
APP = {"command": '["true"]', "input": {"path": "input/"}, "output": {"path": "output/"}}
PKG = {"resources": {"cpu": 0.5, "memory": "64Mi"}}
WIDTHS = (2, 4, 8)
_BLOCK = 1 << 20
_numbers = count()


def bare_inspection(docker: Client) -> float:
    """Return the milliseconds of create, copy and remove."""
    began = time.perf_counter()
    docker.image(IMAGE)
    body = {"Image": IMAGE, "Entrypoint": ["/never-run"], "HostConfig": {"NetworkMode": "none"}}
    container = docker.make(body, f"bench-{next(_numbers)}")
    for name in ("app", "pkg"):
        chunks, _ = docker.get_archive(container, f"/{FOLDER}/{name}.json")
        b"".join(chunks)
    docker.remove_container(container, v=True, force=True)
    return (time.perf_counter() - began) * 1000


async def registration(client: AsyncClient) -> float:
    """Return the milliseconds from POST to `ready`."""
    began = time.perf_counter()
    made = await client.maps.register(IMAGE)
    ready = await client.maps.settled(made["id"], poll_s=0.005)
    if ready["state"] != "ready":
        sys.exit(f"the MAP is {ready['state']}: {ready['reason']}")
    return (time.perf_counter() - began) * 1000


async def registrations(folder: Path, docker: Client, environment: dict[str, str], rounds: int) -> None:
    with EmbeddedProcess(folder / "embedded", folder, environment) as server:
        async with AsyncClient(server.url, server.token) as client:
            ours, theirs = [await registration(client)], [await asyncio.to_thread(bare_inspection, docker)]
            for _ in range(rounds):
                ours.append(await registration(client))
                theirs.append(await asyncio.to_thread(bare_inspection, docker))
    print(row("first registration", ours[:1], "ms"))
    print(row("registration, POST to ready", ours[1:], "ms"))
    print(row("bare create, copy, remove", theirs[1:], "ms"))
    print(ratio("registration over the bare thing", ours[1:], theirs[1:]))


def series(folder: Path, files: int, megabytes: int) -> int:
    """Write a series and return its bytes."""
    folder.mkdir()
    size = megabytes * 1_000_000 // files
    for number in range(files):
        (folder / f"{number:04}.dcm").write_bytes(os.urandom(size))
    return size * files


def fetch(urls: Sequence[str], folder: Path) -> None:
    """Download all over one connection, hash, and write to files."""
    buffer = memoryview(bytearray(_BLOCK))
    with contextlib.closing(http.client.HTTPConnection(urlsplit(urls[0]).netloc)) as connection:
        for url in urls:
            parts = urlsplit(url)
            connection.request("GET", f"{parts.path}?{parts.query}")
            answer = connection.getresponse()
            if answer.status != http.HTTPStatus.OK:
                raise OSError(answer.status)
            sha256 = hashlib.sha256()
            with (folder / str(next(_numbers))).open("wb", buffering=0) as file:
                while read := answer.readinto(buffer):
                    sha256.update(buffer[:read])
                    file.write(buffer[:read])
            sha256.hexdigest()


def download(urls: Sequence[str], width: int) -> float:
    """Return the seconds of a parallel download."""
    with tempfile.TemporaryDirectory(prefix="gurney-bench-") as name, ThreadPoolExecutor(width) as pool:
        began = time.perf_counter()
        list(pool.map(lambda share: fetch(share, Path(name)), (urls[start::width] for start in range(width))))
        return time.perf_counter() - began


async def staging(client: AsyncClient, map_id: str, payload: str) -> float:
    """Return the seconds for which a job was staging."""
    job = await client.jobs.create(map=map_id, payload=payload)
    while job["state"] not in {"succeeded", "failed", "canceled"}:
        job = await client.jobs.get(job["id"], wait_s=60)
    if job["state"] != "succeeded":
        sys.exit(f"a job ended as {job['state']}: {job['reason']}")
    return float(job["timings"]["staging"])


async def stagings(folder: Path, environment: dict[str, str], options: argparse.Namespace) -> None:
    total = await asyncio.to_thread(series, folder / "series", options.files, options.megabytes)
    ours: list[float] = []
    theirs: dict[int, list[float]] = {width: [] for width in WIDTHS}
    with Stack(folder / "stack", folder, environment, agents=1) as stack:
        objects = objects_of(Settings(**stack.minio.settings()))
        await objects.open()
        async with AsyncClient(stack.url, stack.token) as client:
            made = await client.maps.settled((await client.maps.register(IMAGE))["id"])
            payload = (await client.payloads.create())["id"]
            await client.payloads.upload(payload, [folder / "series"])
            keys = [each.key async for each in objects.list() if each.size == total // options.files]
            for number in range(options.runs + 1):  # the first one warms up
                taken = await staging(client, made["id"], payload)
                for width in WIDTHS:
                    urls = [objects.sign_get(key) for key in keys]
                    theirs[width].append(await asyncio.to_thread(download, urls, width))
                ours.append(taken)
                print(f"{number}: staging {taken:.2f} s, " + ", ".join(f"{theirs[w][-1]:.2f} s" for w in WIDTHS))
        await objects.close()
    if len(keys) != options.files:
        sys.exit(f"{len(keys)} objects instead of {options.files}")
    best = min(WIDTHS, key=lambda width: statistics.median(theirs[width][1:]))
    mb = total / 1e6
    print(row(f"staging, {options.files} files, {mb:.0f} MB", [mb / each for each in ours[1:]], "MB/s"))
    for width in WIDTHS:
        print(row(f"download, {width} at once", [mb / each for each in theirs[width][1:]], "MB/s"))
    print(ratio(f"staging to the download by {best}", theirs[best][1:], ours[1:]))


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--megabytes", type=int, default=260)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    manifests = {f"{FOLDER}/{name}.json": json.dumps(each) for name, each in (("app", APP), ("pkg", PKG))}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gurney-bench-")))
        daemon = stack.enter_context(DockerDaemon(folder / "docker"))
        docker = stack.enter_context(contextlib.closing(daemon.client()))
        make_image(docker, IMAGE, manifests)
        environment = {"GURNEY_DOCKER_URL": daemon.url, "GURNEY_LOG_LEVEL": os.environ.get("GURNEY_LOG_LEVEL", "info")}
        print(HEAD)
        if options.rounds:
            await registrations(folder, docker, environment, options.rounds)
        if options.runs:
            await stagings(folder, environment, options)


if __name__ == "__main__":
    asyncio.run(main())
