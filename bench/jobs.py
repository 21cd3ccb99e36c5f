"""No-op jobs through the whole embedded server, beside a bare spawn of the same command and Celery with RabbitMQ.

    .venv/bin/python bench/jobs.py [--stack] [--replicas 2] [--rounds 5] [--latencies 40] [--rate 600] [--jobs 0]

Prints the latency of one job at a time over a bare spawn, jobs per second with 64 in flight, where the time goes, and
resident memory; with --jobs 10000 also whether memory stays flat over so many jobs. With --stack the same through the
stack: each service a process of its own, so many of each, over MongoDB and MinIO.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from celery_side import celery, missing
from figures import HEAD, ratio, row

from gurney.client import AsyncClient
from gurney.testing.embedded import EmbeddedProcess
from gurney.testing.folder_maps import make_map
from gurney.testing.stack import Stack

IN_FLIGHT = 64
MIB = 1024**2
PHASES = ("queued", "pulling", "staging", "running", "collecting", "other")


class Gurney:
    """Submits no-op jobs through REST and waits for their ends."""

    def __init__(self, client: AsyncClient, map_id: str, payload: str) -> None:
        self._client = client
        self._map = map_id
        self._payload = payload
        self.ended: list[dict[str, Any]] = []

    async def job(self) -> None:
        job = await self._client.jobs.create(map=self._map, payload=self._payload)
        ended = await self._client.jobs.get(job["id"], wait_s=60)
        if ended["state"] != "succeeded":
            sys.exit(f"a no-op job ended as {ended['state']}: {ended['reason']}")
        self.ended.append(ended)


def spawn() -> None:
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


async def latencies(work: Callable[[], Awaitable[None]], count: int) -> float:
    """Return the median in ms of doing it one after the other."""
    taken = []
    for _ in range(count):
        begun = time.perf_counter()
        await work()
        taken.append((time.perf_counter() - begun) * 1000)
    return statistics.median(taken)


async def rate(work: Callable[[], Awaitable[None]], count: int) -> float:
    """Return how many a second with 64 in flight."""
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def one() -> None:
        async with gate:
            await work()

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    return count / (time.perf_counter() - begun)


Server = EmbeddedProcess | Stack


def processes(server: Server) -> dict[str, psutil.Process]:
    """Return the processes of a running server by name, without those of runs."""
    if isinstance(server, Stack):
        return {name: psutil.Process(part.pid) for name, part in server.parts.items()}
    process = psutil.Process(server.pid)
    nats = [child for child in process.children() if "nats" in child.name()]
    return {"server": process, **dict(zip(["nats"], nats, strict=True))}


def resident(server: Server) -> float:
    """Return MiB of all of the server."""
    return sum(each.memory_info().rss for each in processes(server).values()) / MIB


def processor(server: Server) -> dict[str, float]:
    """Return the processor seconds until now by part, all of a kind as one."""
    spent: dict[str, float] = {}
    for name, process in processes(server).items():
        times = process.cpu_times()
        kind = name.rstrip("-0123456789")
        spent[kind] = spent.get(kind, 0) + times.user + times.system
    return spent


def costs(before: Mapping[str, float], after: Mapping[str, float], jobs: int) -> str:
    """Return the processor time of a job, by part."""
    each = {name: (after[name] - before[name]) / jobs * 1000 for name in after}
    parts = ", ".join(f"{name} {spent:.2f}" for name, spent in sorted(each.items(), key=lambda item: -item[1]))
    return f"processor time a job: {sum(each.values()):.2f} ms ({parts})"


def hops(jobs: Sequence[dict[str, Any]]) -> list[str]:
    """Return where a job's time went, by its own timings and stamps."""
    lines = []
    for phase in PHASES:
        taken = [job["timings"][phase] * 1000 for job in jobs if job["timings"][phase] is not None]
        lines.append(row(f"  {phase}", taken, "ms") if taken else f"  {phase}: none")
    stamps = [
        [datetime.fromisoformat(job[f"{name}_at"]) for name in ("created", "scheduled", "stopped")] for job in jobs
    ]
    lines.append(row("  accepted to placed", [(b - a).total_seconds() * 1000 for a, b, _ in stamps], "ms"))
    lines.append(row("  placed to stopped", [(c - b).total_seconds() * 1000 for _, b, c in stamps], "ms"))
    return lines


async def flat(gurney: Gurney, server: Server, count: int) -> None:
    """Print memory over many jobs; the streams reach their bounds after the first half."""
    samples = []
    for done in range(0, count, 1000):
        await rate(gurney.job, 1000)
        gurney.ended.clear()
        samples.append(resident(server))
        print(f"  after {done + 1000:>6} jobs: {samples[-1]:.1f} MiB", flush=True)
    late = samples[len(samples) // 2 :]
    print(f"memory over the second half of {count} jobs: {max(late) - min(late):.1f} MiB between lowest and highest")


async def main(options: argparse.Namespace) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urn = make_map(folder / "maps", "noop", ["/bin/true"])
        server = make_server(folder, options)
        begun = time.perf_counter()
        await asyncio.to_thread(server.start)
        stack.callback(server.stop)
        print(f"the server was ready after {time.perf_counter() - begun:.2f} s")
        lacking = missing()
        tasks = None if lacking else stack.enter_context(celery(folder, os.cpu_count() or 1))
        if lacking:
            print(f"without Celery: there is no {lacking}")
        async with AsyncClient(server.url, server.token) as client:
            await compare(client, urn, server, tasks, options)


def make_server(folder: Path, options: argparse.Namespace) -> Server:
    if options.stack:
        return Stack(folder / "data", folder / "maps", replicas=options.replicas, agents=options.replicas)
    return EmbeddedProcess(folder / "data", folder / "maps")


async def compare(
    client: AsyncClient,
    urn: str,
    server: Server,
    tasks: dict[str, Callable[[], Any]] | None,
    options: argparse.Namespace,
) -> None:
    document = await client.maps.settled((await client.maps.register(urn))["id"])
    payload = await client.payloads.create()
    gurney = Gurney(client, document["id"], payload["id"])
    works = {"gurney": gurney.job} | celery_works(tasks or {})
    print(f"resident memory, idle: {resident(server):.1f} MiB, all in")
    for work in works.values():
        await rate(work, IN_FLIGHT)
    gurney.ended.clear()
    single = await rounds(options.rounds, {"bare spawn": bare} | works, lambda work: latencies(work, options.latencies))
    alone = list(gurney.ended)
    before = processor(server)
    rates = await rounds(options.rounds, works, lambda work: rate(work, options.rate))
    spent = costs(before, processor(server), options.rounds * options.rate)
    print(HEAD)
    print(*(row(f"one at a time: {name}", values, "ms") for name, values in single.items()), sep="\n")
    over = [ours - theirs for ours, theirs in zip(single["gurney"], single["bare spawn"], strict=True)]
    print(row("gurney over a bare spawn", over, "ms"))
    print(*(row(f"64 in flight: {name}", values, "jobs/s") for name, values in rates.items()), sep="\n")
    print(
        *(ratio(f"jobs/s, gurney to {name}", rates["gurney"], rates[name]) for name in rates if name != "gurney"),
        sep="\n",
    )
    print(spent)
    print("where the time of one job at a time goes:", *hops(alone), sep="\n")
    print(f"resident memory after {len(gurney.ended)} jobs: {resident(server):.1f} MiB")
    if options.jobs:
        await flat(gurney, server, options.jobs)


Work = Callable[[], Awaitable[None]]


async def bare() -> None:
    spawn()


def celery_works(tasks: dict[str, Callable[[], Any]]) -> dict[str, Work]:
    pool = ThreadPoolExecutor(IN_FLIGHT)

    def work(submit: Callable[[], Any]) -> Work:
        async def run() -> None:
            await asyncio.get_running_loop().run_in_executor(pool, lambda: submit().get(timeout=60))

        return run

    return {f"celery {name}": work(submit) for name, submit in tasks.items()}


async def rounds(
    count: int, works: dict[str, Work], measure: Callable[[Work], Awaitable[float]]
) -> dict[str, list[float]]:
    """Measure each in turn, so that all share what the machine does meanwhile."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(count):
        for name, work in works.items():
            taken[name].append(await measure(work))
    return taken


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", action="store_true")
    parser.add_argument("--replicas", type=int, default=2, help="how many there are of each service of the stack")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latencies", type=int, default=40)
    parser.add_argument("--rate", type=int, default=600)
    parser.add_argument("--jobs", type=int, default=0)
    asyncio.run(main(parser.parse_args()))
