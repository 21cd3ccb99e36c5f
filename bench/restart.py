"""How soon each service serves again that was killed, beside a bare start of Python with the libraries that all need.

    .venv/bin/python bench/restart.py [--rounds 7] [--clients 2]

One process of each service over MongoDB and MinIO, so that nobody stands in. The time is from the start of the process
until its first answer: of a service to the edge, which passes it on, of the edge and the agent to us. Meanwhile clients
submit no-op jobs and repeat each request, with its Idempotency-Key, until it is answered.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import psutil
from aiohttp import ClientSession
from figures import HEAD, ratio, row

from gurney.client import AsyncClient
from gurney.errors import GurneyError, Unavailable
from gurney.testing.child import LOOPBACK, answers
from gurney.testing.folder_maps import make_map
from gurney.testing.stack import Process, Stack

BARE = "import aiohttp, nats, motor, pydantic"
WITHIN_S = 60.0
LOOK_S = 0.005


class Clients:
    """They submit jobs, and ask again whatever happens."""

    def __init__(self, client: AsyncClient, map_id: str, payload: str) -> None:
        self._client = client
        self._map = map_id
        self._payload = payload
        self._keys = itertools.count()
        #: Key -> the job that it made.
        self.made: dict[str, str] = {}
        self.again = 0
        self.waits: list[float] = []

    @contextlib.asynccontextmanager
    async def submitting(self, count: int) -> AsyncIterator[None]:
        going = asyncio.Event()
        clients = [asyncio.create_task(self._submit_until(going)) for _ in range(count)]
        yield
        going.set()
        await asyncio.gather(*clients)

    async def _submit_until(self, over: asyncio.Event) -> None:
        while not over.is_set():
            begun = time.perf_counter()
            key = f"restart-{next(self._keys)}"
            self.made[key] = await self._submit(key)
            self.waits.append(time.perf_counter() - begun)
            await asyncio.sleep(0.1)

    async def _submit(self, key: str) -> str:
        while True:
            with contextlib.suppress(Unavailable, ConnectionError, TimeoutError):
                job = await self._client.jobs.create(map=self._map, payload=self._payload, idempotency_key=key)
                return str(job["id"])
            self.again += 1
            await asyncio.sleep(0.02)

    async def lost(self) -> list[str]:
        """Return the requests that made no job, or another one than they were told of."""
        lost = []
        for key, job in self.made.items():
            try:
                ended = await self._client.jobs.get(job, wait_s=60)
                found = f"{ended['state']} {ended['reason'] or ''}".strip()
            except GurneyError as error:
                found = error.code
            if found != "succeeded" or await self._submit(key) != job:
                lost.append(f"{key} {job} {found}")
        return lost


def url_of(stack: Stack, name: str) -> str:
    """Return what a process answers as soon as it serves."""
    process = stack.processes[name]
    own = f"http://{LOOPBACK}:{process.health}/readyz"
    return own if process.service == "agent" else f"{stack.url}/readyz"


def restart(process: Process, url: str) -> tuple[float, float]:
    """Kill a process and start it; return the seconds from there until it answers, and those of the processor."""
    process.kill()
    begun = time.perf_counter()
    process.begin()
    while not answers(url):
        if time.perf_counter() - begun > WITHIN_S:
            sys.exit(f"{process.service} does not serve: {process.log.read_text()[-2000:]}")
        time.sleep(LOOK_S)
    spent = psutil.Process(process.pid).cpu_times()
    return time.perf_counter() - begun, spent.user + spent.system


def bare() -> tuple[float, float]:
    begun, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-c", BARE], check=True)
    after = os.times()
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    return time.perf_counter() - begun, spent


async def main(options: argparse.Namespace) -> None:
    async with AsyncExitStack() as open_:
        folder = Path(open_.enter_context(tempfile.TemporaryDirectory()))
        urn = make_map(folder / "maps", "noop", ["/bin/true"])
        stack = Stack(folder / "data", folder / "maps", {"GURNEY_DOCKER_URL": "none"}, replicas=1, agents=1)
        await asyncio.to_thread(stack.start)
        open_.callback(stack.stop)
        client = await open_.enter_async_context(AsyncClient(stack.url, stack.token))
        document = await client.maps.settled((await client.maps.register(urn))["id"])
        clients = Clients(client, document["id"], (await client.payloads.create())["id"])
        async with clients.submitting(options.clients):
            taken, spent = await measure(stack, options.rounds)
        lost = await clients.lost()
    print(HEAD)
    for what, values in (("serves again after", taken), ("processor time", spent)):
        print(*(row(f"{name}: {what}", values[name], "s") for name in values), sep="\n")
        print(*(ratio(f"{name} to bare: {what}", values[name], values["bare"]) for name in stack.processes), sep="\n")
    print(row("a request, until it was answered", clients.waits, "s"))
    print(f"{len(clients.made)} requests, {clients.again} times asked again, {len(lost)} lost {lost[:5]}")


Figures = dict[str, list[float]]


async def measure(stack: Stack, rounds: int) -> tuple[Figures, Figures]:
    """Measure each in turn, so that all share what the machine does meanwhile."""
    taken: Figures = defaultdict(list)
    spent: Figures = defaultdict(list)
    for _ in range(rounds):
        starts = {"bare": bare} | {
            name: partial(restart, process, url_of(stack, name)) for name, process in stack.processes.items()
        }
        for name, start in starts.items():
            for values, value in zip((taken, spent), await asyncio.to_thread(start), strict=True):
                values[name].append(value)
            await ready(stack)
    return taken, spent


async def ready(stack: Stack) -> None:
    """Wait until all is well again, so that each is measured alone."""
    async with ClientSession() as session:
        for name in stack.processes:
            while True:
                async with session.get(url_of(stack, name)) as answer:
                    if answer.ok:
                        break
                await asyncio.sleep(0.05)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clients", type=int, default=2)
    asyncio.run(main(parser.parse_args()))
