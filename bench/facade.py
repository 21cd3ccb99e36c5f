"""What InferenceServer's façade costs over a job of Gurney's own: one task after another, and one of 500 MB.

    .venv/bin/python bench/facade.py [--rounds 100] [--size 500]

A small zip goes in, its files come out: posted as a task and polled through the façade, beside the same through
Gurney's API (payload of the zip, job, polled as often, archive of the results), in turn. Then a zip of incompressible
bytes goes in and comes out, and the resident memory of the façade and of the server is looked at meanwhile.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import zipfile
from contextlib import AsyncExitStack
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

    def __init__(self, public: str, gurney: AsyncClient, map_id: str, session: aiohttp.ClientSession) -> None:
        self._public = public
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

    async def job(self, archive: Path) -> float:
        began = time.perf_counter()
        payload = await self._gurney.payloads.create_from_archive(archive)
        asked = {"resources": {"cpu": 1, "memory": 64 * MIB, "gpus": 0}}
        job = await self._gurney.jobs.create(map=self._map, payload=payload["id"], **asked)
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
    tasks, jobs = [], []
    for number in range(-5, rounds):
        pair = (sides.task, sides.job) if number % 2 else (sides.job, sides.task)
        took = {work: await work(archive) for work in pair}
        if number >= 0:  # the first few warm up
            tasks.append(took[sides.task])
            jobs.append(took[sides.job])
    print(row("a task through the facade", tasks, "ms"))
    print(row("a job through the API", jobs, "ms"))
    over = [task - job for task, job in zip(tasks, jobs, strict=True)]
    print(row(f"over the job (asked: {MOST_MS})", over, "ms"))


async def memory(sides: Sides, archive: Path, facade: int, server: int) -> None:
    resident = Resident(facade=facade, server=server)
    watching = asyncio.create_task(resident.watch())
    began = time.perf_counter()
    uid = await sides.post(archive)
    posted = time.perf_counter() - began
    size = await sides.output(uid)
    watching.cancel()
    print(f"{size / 1e6:.0f} MB, posted in {posted:.1f} s, fetched", end="; ")
    print(", ".join(f"{name} +{grown:.1f} MiB" for name, grown in resident.grown.items()), f"(asked: {MOST_MIB})")


async def main(options: argparse.Namespace) -> None:
    print(HEAD)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urn = make_map(folder / "maps", "copy", ["/bin/sh", "-c", COPY])
        server = stack.enter_context(EmbeddedProcess(folder / "data", folder / "maps", {"GURNEY_DOCKER_URL": "none"}))
        gurney = await stack.enter_async_context(AsyncClient(server.url, server.token))
        ports = {"PUBLIC_PORT": str(free_port()), "PRIVATE_PORT": str(free_port())}
        said = {"SERVER": server.url, "TOKEN": server.token, "DATA": str(folder / "facade"), "MEMORY": str(64 * MIB)}
        environment = {f"GURNEY_INFERENCE_SERVER_{name}": value for name, value in (said | ports).items()}
        facade = Child([GURNEY, "serve", "inference-server"], folder / "facade.log", environment).start()
        stack.callback(facade.stop)
        facade.until(lambda: "private, on" in facade.log.read_text(), 60)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        query = {"container_tag": urn, "human_readable_id": "copy", "use_gpu": "false"}
        private = f"http://127.0.0.1:{ports['PRIVATE_PORT']}"
        async with session.post(f"{private}/api/models/", params=query) as answer:
            assert answer.status == 200, await answer.text()
        document = await gurney.maps.settled((await gurney.maps.register(urn))["id"])
        sides = Sides(f"http://127.0.0.1:{ports['PUBLIC_PORT']}", gurney, document["id"], session)
        await overhead(sides, zipped(folder / "small.zip", 10_000), options.rounds)
        large = await asyncio.to_thread(zipped, folder / "large.zip", options.size * 1_000_000)
        for _ in range(2):
            await memory(sides, large, facade.pid, server.pid)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="tasks and jobs, in turn")
    parser.add_argument("--size", type=int, default=500, help="MB of the large zip")
    asyncio.run(main(parser.parse_args()))
