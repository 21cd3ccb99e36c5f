"""From the fact that a job is requested to the hand of its agent, at a steady rate, with runs that are stubbed.

    .venv/bin/python bench/handover.py [--over embedded mongo stack] [--rate 100] [--seconds 20] [--rounds 5]

Jobs come through REST at random, so many a second on average, whether or not the ones before are done. An observer on
NATS sees `job.requested` published, the start sent, and the agent, which has written it to its journal, ask whether it
may. Prints the medians and 99 % marks of the rounds: the least, the middle and the most. `embedded`: `gurney up`;
`mongo`: the same services in one process over MongoDB and MinIO; `stack`: each a process of its own over the same.
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import nats
import psutil
from figures import HEAD, row
from nats.aio.client import Client
from nats.aio.msg import Msg

from gurney.client import AsyncClient
from gurney.testing import embedded, stack
from gurney.testing.child import Child, answers, free_port
from gurney.testing.embedded import EmbeddedProcess
from gurney.testing.folder_maps import make_map
from gurney.testing.minio import minio
from gurney.testing.mongo import MongoServer
from gurney.testing.nats import NatsServer
from gurney.testing.stack import Stack
from services.serve.composition import SERVICES

#: The command `gurney`, except that a run has ended as soon as it is begun, and nothing was executed.
STUBBED = f"""#!{sys.executable}
import asyncio
import sys
import time

from gurney.cli import main
from gurney.runtime import process

class Link:
    def __init__(self, folder, hear, **_):
        self.ends, self.folder, self.hear = {{}}, folder, hear

    async def open(self):
        pass

    async def close(self):
        pass

    async def ask(self, what, *, run_id="", **_):
        if what == "start" and run_id not in self.ends:
            run = self.folder / "runs" / run_id
            run.mkdir(parents=True)
            (run / "log").touch()
            now = time.time()
            end = {{"cause": "exited", "exit_code": 0, "started_at": now, "stopped_at": now, "duration_s": 0.0}}
            self.ends[run_id] = end
            asyncio.get_running_loop().call_soon(self.hear, {{"ended": run_id, "end": end}})
        if what == "forget":
            self.ends.pop(run_id, None)
        return {{"end": None, "forgotten": True, "members": [], "runs": list(self.ends.items())}}

process.SupervisorLink = Link
sys.exit(main())
"""
READY_WITHIN_S = 60
ENDED_WITHIN_S = 120
#: There is always room.
ENVIRONMENT = {"GURNEY_CPU": "64", "GURNEY_MEMORY": str(1 << 40), "GURNEY_DOCKER_URL": "none"}
FACTS = ("job.requested.*", "job.succeeded.*", "run.*.start.*", "svc.scheduler.confirm", "svc.scheduler.confirm.>")


class Observer:
    """Notes when the messages of each job were on the wire."""

    def __init__(self, connection: Client) -> None:
        self._nats = connection
        self.requested: dict[str, float] = {}
        self.sent: dict[str, float] = {}
        self.asked: dict[str, float] = {}
        self.succeeded: set[str] = set()

    async def watch(self) -> None:
        for subject in FACTS:
            await self._nats.subscribe(subject, cb=self._see)
        await self._nats.flush()

    async def _see(self, message: Msg) -> None:
        now = time.perf_counter() * 1000
        last = message.subject.rpartition(".")[2]
        match message.subject.split("."):
            case "job", "requested", _:
                self.requested.setdefault(last, now)
            case "job", "succeeded", _:
                self.succeeded.add(last)
            case "run", *_:
                self.sent.setdefault(last.rpartition("-")[0], now)
            case _:
                self.asked.setdefault(json.loads(message.data)["run_id"].rpartition("-")[0], now)

    def since_requested(self, seen: dict[str, float], jobs: Sequence[str]) -> list[float]:
        return [seen[job] - self.requested[job] for job in jobs]


class Site:
    """A server that runs: where it is, and its processes."""

    def __init__(self, url: str, token: str, nats_server: dict[str, Any], pids: Sequence[int]) -> None:
        self.url = url
        self.token = token
        self.nats = nats_server
        self._processes = [psutil.Process(pid) for pid in pids]

    def processor_s(self) -> float:
        """Return the processor seconds of all until now, the children's that live included."""
        everyone = [each for process in self._processes for each in (process, *process.children())]
        return sum(times.user + times.system for times in (each.cpu_times() for each in everyone))


@contextmanager
def over_embedded(folder: Path) -> Iterator[Site]:
    with EmbeddedProcess(folder / "data", folder / "maps", ENVIRONMENT) as server:
        told = (server.data / "nats" / "nats-server.conf").read_text()
        port, password = (re.search(each, told) for each in (r'listen: "127.0.0.1:(\d+)"', r'password: "([^"]+)"'))
        assert port
        assert password
        where = {"servers": f"nats://127.0.0.1:{port[1]}", "user": "gurney", "password": password[1]}
        yield Site(server.url, server.token, where, [server.pid])


@contextmanager
def over_mongo(folder: Path) -> Iterator[Site]:
    port = free_port()
    with NatsServer(folder / "nats") as bus, MongoServer(folder / "mongo") as mongo, minio(folder / "minio") as objects:
        environment = {
            "GURNEY_NATS_URL": bus.url,
            "GURNEY_MONGO_URL": mongo.url,
            **{f"GURNEY_{name.upper()}": value for name, value in objects.settings().items()},
            "GURNEY_DATA": str(folder / "data"),
            "GURNEY_MAPS": str(folder / "maps"),
            "GURNEY_PORT": str(port),
            "GURNEY_ADMIN_TOKEN": "a token",
            "GURNEY_RUN_SECRET": "a secret",
            **ENVIRONMENT,
        }
        url = f"http://127.0.0.1:{port}"
        server = Child([stack.GURNEY, "serve", *SERVICES], folder / "log", environment)
        with server:
            server.until(lambda: answers(f"{url}/readyz"), READY_WITHIN_S)
            pids = [server.pid, bus.pid, mongo.pid, objects.pid]
            yield Site(url, "a token", {"servers": bus.url}, pids)


@contextmanager
def over_stack(folder: Path) -> Iterator[Site]:
    with Stack(folder / "data", folder / "maps", ENVIRONMENT, replicas=1, agents=1) as running:
        password = (running.data / "secrets" / "nats_operator").read_text().strip()
        where = {"servers": running.nats.url, "user": "operator", "password": password}
        yield Site(running.url, running.token, where, [part.pid for part in running.parts.values()])


OVER = {"embedded": over_embedded, "mongo": over_mongo, "stack": over_stack}


async def arrivals(client: AsyncClient, body: dict[str, str], rate: float, seconds: float, seed: int) -> list[str]:
    """Submit jobs at random moments, `rate` a second; return their ids."""
    chance, at, begun, asking = random.Random(seed), 0.0, time.perf_counter(), []
    while (at := at + chance.expovariate(rate)) < seconds:
        await asyncio.sleep(begun + at - time.perf_counter())
        asking.append(asyncio.create_task(client.jobs.create(**body)))
    return [job["id"] for job in await asyncio.gather(*asking)]


async def ended(observer: Observer, jobs: Sequence[str]) -> None:
    async with asyncio.timeout(ENDED_WITHIN_S):
        while not observer.succeeded.issuperset(jobs):  # noqa: ASYNC110  it is a bench's own patience
            await asyncio.sleep(0.05)


async def measure(site: Site, urn: str, options: argparse.Namespace) -> None:
    connection = await nats.connect(**site.nats)
    observer = Observer(connection)
    await observer.watch()
    sent, asked, costs = [], [], []
    async with AsyncClient(site.url, site.token) as client:
        document = await client.maps.settled((await client.maps.register(urn))["id"])
        payload = await client.payloads.create()
        body = {"map": document["id"], "payload": payload["id"]}
        for number in range(options.rounds + 1):
            spent = site.processor_s()
            jobs = await arrivals(client, body, options.rate, options.seconds if number else 2, number)
            await ended(observer, jobs)
            if number:  # the first is to get warm
                sent.append(observer.since_requested(observer.sent, jobs))
                asked.append(observer.since_requested(observer.asked, jobs))
                costs.append((site.processor_s() - spent) / len(jobs) * 1000)
    await connection.close()
    for name, rounds in (("the start is sent", sent), ("the agent asks whether it may", asked)):
        print(row(f"{name}: median", [statistics.median(each) for each in rounds], "ms"))
        print(row(f"{name}: 99 %", [statistics.quantiles(each, n=100)[98] for each in rounds], "ms"))
    print(row("processor time a job", costs, "ms"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--over", nargs="+", choices=OVER, default=list(OVER))
    parser.add_argument("--rate", type=float, default=100, help="jobs a second")
    parser.add_argument("--seconds", type=float, default=20, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for kind in options.over:
        with ExitStack() as open_:
            folder = Path(open_.enter_context(tempfile.TemporaryDirectory()))
            stubbed = folder / "gurney"
            stubbed.write_text(STUBBED)
            stubbed.chmod(0o700)
            embedded.GURNEY = stack.GURNEY = stubbed
            urn = make_map(folder / "maps", "noop", ["/bin/true"])
            site = open_.enter_context(OVER[kind](folder))
            print(f"{kind}, {options.rate:g} jobs/s, load {os.getloadavg()[0]:.1f}\n{HEAD}", flush=True)
            asyncio.run(measure(site, urn, options))


if __name__ == "__main__":
    main()
