"""What the façades cost over a job of Gurney's own: one request after another, and one of 500 MB.

    .venv/bin/python bench/facade.py [--rounds 100] [--size 500]

A small zip goes in, its files come out: posted as a task of InferenceServer and polled, uploaded to MONAI Inference
Service, and through Gurney's API (payload of the zip, job, polled as often, archive of the results), in turn. Then a
zip of incompressible bytes goes in and comes out, and the resident memory of façade and server is looked at meanwhile.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import aiohttp
import psutil
from figures import HEAD, row

from gurney.client import AsyncClient
from gurney.testing.child import Child, free_port
from gurney.testing.embedded import EmbeddedProcess
from gurney.testing.folder_maps import make_map

GURNEY = Path(sys.executable).parent / "gurney"
#: Seconds between two polls, on both sides.
POLL_S = 0.002
#: Milliseconds that a task may take longer, and MiB that memory may grow: what is asked for.
MOST_MS, MOST_MIB = 10, 32
MIB = 1024**2
COPY = 'cp -r "$HOLOSCAN_INPUT_PATH"/. "$HOLOSCAN_OUTPUT_PATH"/'


class Sides:
    """The same work, through the façade and through the API."""

    def __init__(self, public: str, mis: str, gurney: AsyncClient, map_id: str, session: aiohttp.ClientSession) -> None:
        self._public = public
        self._mis = mis
        self._gurney = gurney
        self._map = map_id
        self._session = session

    async def post(self, archive: Path) -> str:
        with archive.open("rb") as file:
            form = aiohttp.FormData()
            form.add_field("zip_file", file, filename="input.zip")
            query = {"model_human_readable_id": "copy"}
            async with self._session.post(f"{self._public}/api/tasks/", params=query, data=form) as answer:
                assert answer.status == 200, await answer.text()
                return str(json.loads(await answer.read()))

    async def output(self, uid: str) -> int:
        """Poll until there is an output; returns its size."""
        while True:
            async with self._session.get(f"{self._public}/api/tasks/{uid}") as answer:
                if answer.status == 200:
                    return sum([len(chunk) async for chunk in answer.content.iter_chunked(MIB)])
                assert answer.status == 551, answer.status
            await asyncio.sleep(POLL_S)

    async def task(self, archive: Path) -> float:
        began = time.perf_counter()
        await self.output(await self.post(archive))
        return 1e3 * (time.perf_counter() - began)

    async def uploaded(self, archive: Path) -> float:
        began = time.perf_counter()
        with archive.open("rb") as file:
            form = aiohttp.FormData()
            form.add_field("file", file, filename="input.zip")
            async with self._session.post(f"{self._mis}/upload/", data=form) as answer:
                assert answer.status == 200, await answer.text()
                assert sum([len(chunk) async for chunk in answer.content.iter_chunked(MIB)])
        return 1e3 * (time.perf_counter() - began)

    async def job(self, archive: Path) -> float:
        began = time.perf_counter()
        payload = await self._gurney.payloads.create_from_archive(archive)
        resources = {"cpu": 1, "memory": 64 * MIB, "gpus": 0}
        job = await self._gurney.jobs.create(map=self._map, payload=payload["id"], resources=resources)
        while True:
            job = await self._gurney.jobs.get(job["id"])
            if job["state"] == "succeeded":
                break
            await asyncio.sleep(POLL_S)
        async with self._gurney.jobs.results(job["id"]) as results:
            assert sum([len(chunk) async for chunk in results.chunks])
        return 1e3 * (time.perf_counter() - began)


class Resident:
    """The most that processes hold, in MiB, above what they held at first."""

    def __init__(self, **pids: int) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._first = self._now()
        self.grown = dict.fromkeys(pids, 0.0)

    def _now(self) -> dict[str, float]:
        return {name: process.memory_info().rss / MIB for name, process in self._processes.items()}

    async def watch(self) -> None:
        while True:
            for name, now in self._now().items():
                self.grown[name] = max(self.grown[name], now - self._first[name])
            await asyncio.sleep(0.02)


def zipped(path: Path, size: int) -> Path:
    """Write a zip with one file of random bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive, archive.open("scan.raw", "w") as entry:
        for _ in range(max(1, size // MIB)):
            entry.write(os.urandom(min(size, MIB)))
    return path


async def overhead(sides: Sides, archive: Path, rounds: int) -> None:
    works = {"a task of InferenceServer": sides.task, "an upload to MIS": sides.uploaded, "a job": sides.job}
    took: dict[str, list[float]] = {name: [] for name in works}
    for number in range(-5, rounds):
        names = list(works)
        for name in names[number % 3 :] + names[: number % 3]:  # each goes first as often as the others
            milliseconds = await works[name](archive)
            if number >= 0:  # the first few warm up
                took[name].append(milliseconds)
    for name, values in took.items():
        print(row(name, values, "ms"))
    jobs = took.pop("a job")
    print(f"over the job, where {MOST_MS} ms are asked for at the median:")
    for name, values in took.items():
        over = [value - job for value, job in zip(values, jobs, strict=True)]
        print(row(name, over, "ms"))


async def memory(name: str, move: Callable[[Path], Awaitable[float]], archive: Path, **pids: int) -> None:
    resident = Resident(**pids)
    watching = asyncio.create_task(resident.watch())
    seconds = await move(archive) / 1e3
    watching.cancel()
    grown = ", ".join(f"{part} +{mib:.1f} MiB" for part, mib in resident.grown.items())
    print(f"{name}: in and out in {seconds:.1f} s; {grown} (asked: {MOST_MIB})")


@contextmanager
def serving(name: str, folder: Path, ready: str, **said: str) -> Iterator[Child]:
    """Serve a façade."""
    prefix = f"GURNEY_{name.upper().replace('-', '_')}_"
    environment = {f"{prefix}{key}": value for key, value in said.items()}
    child = Child([GURNEY, "serve", name], folder / f"{name}.log", environment).start()
    try:
        yield child.until(lambda: ready in child.log.read_text(), 60)
    finally:
        child.stop()


async def main(options: argparse.Namespace) -> None:
    print(HEAD)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urn = make_map(folder / "maps", "copy", ["/bin/sh", "-c", COPY])
        server = stack.enter_context(EmbeddedProcess(folder / "data", folder / "maps", {"GURNEY_DOCKER_URL": "none"}))
        gurney = await stack.enter_async_context(AsyncClient(server.url, server.token))
        public, private, mis = free_port(), free_port(), free_port()
        said = {"SERVER": server.url, "TOKEN": server.token}
        told = {"PUBLIC_PORT": f"{public}", "PRIVATE_PORT": f"{private}", "MEMORY": f"{64 * MIB}"}
        first = serving(
            "inference-server", folder, "private, on", **said, **told, DATA=f"{folder / 'inference-server'}"
        )
        second = serving("mis", folder, "serves mis", **said, PORT=f"{mis}", MAP_URN=urn, MAP_MEMORY="256")
        tasks, uploads = stack.enter_context(first), stack.enter_context(second)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        query = {"container_tag": urn, "human_readable_id": "copy", "use_gpu": "false"}
        async with session.post(f"http://127.0.0.1:{private}/api/models/", params=query) as answer:
            assert answer.status == 200, await answer.text()
        document = await gurney.maps.settled((await gurney.maps.register(urn))["id"])
        here = "http://127.0.0.1"
        sides = Sides(f"{here}:{public}", f"{here}:{mis}", gurney, document["id"], session)
        await overhead(sides, zipped(folder / "small.zip", 10_000), options.rounds)
        large = await asyncio.to_thread(zipped, folder / "large.zip", options.size * 1_000_000)
        for _ in range(2):
            await memory("InferenceServer", sides.task, large, facade=tasks.pid, server=server.pid)
            await memory("MIS", sides.uploaded, large, facade=uploads.pid, server=server.pid)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="tasks and jobs, in turn")
    parser.add_argument("--size", type=int, default=500, help="MB of the large zip")
    asyncio.run(main(parser.parse_args()))
