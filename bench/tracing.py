"""What tracing costs: a span, and no-op jobs per second with every trace recorded and sent, beside the same without.

    .venv/bin/python bench/tracing.py [--rounds 9] [--jobs 400] [--jaeger]

Two embedded servers run side by side and are measured in turn. The traced one sends to a process that takes the spans
and drops them, as a collector on another machine costs this one nothing else; with `--jaeger` to a Jaeger here.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import psutil
from figures import HEAD, ratio, row
from jobs import IN_FLIGHT, Gurney, rate

from gurney import ids, recording, telemetry
from gurney.client import AsyncClient
from gurney.testing.embedded import EmbeddedProcess
from gurney.testing.folder_maps import make_map
from gurney.testing.jaeger import Jaeger

#: Spans of one round of their own measurement: what waits is less than what may.
SPANS = 10_000

#: Takes spans and drops them; prints its port.
SINK = """
import socketserver, sys
class Sink(socketserver.StreamRequestHandler):
    def handle(self):
        while True:
            length = 0
            while (line := self.rfile.readline()) not in (b"", b"\\r\\n"):
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            if not line:
                return
            self.rfile.read(length)
            self.wfile.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Sink) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
"""


@contextmanager
def sink() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-c", SINK], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.terminate()
        process.wait()


def spans_alone(endpoint: str, rounds: int) -> None:
    """Print the processor time of a span as consumers make them: where none is recorded, made, and made and sent."""
    unrecorded, made, sent = [], [], []
    for _ in range(rounds):
        unrecorded.append(_per_span(time.process_time, make_spans))
        recording.record(endpoint, service="bench")
        before = time.process_time()
        made.append(_per_span(time.thread_time, make_spans))
        recording.stop()
        sent.append((time.process_time() - before) / SPANS * 1e6)
    print(row("a span that is not recorded", unrecorded, "us"))
    print(row("a span, made", made, "us"))
    print(row("a span, made and sent", sent, "us"))


def _per_span(clock: Callable[[], float], make: Callable[[], None]) -> float:
    before = clock()
    make()
    return (clock() - before) / SPANS * 1e6


def make_spans() -> None:
    parent, run = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", f"{ids.new_id('job')}-1"
    attributes = {"messaging.system": "nats", "messaging.operation.name": "process", "messaging.message.id": "evt_01"}
    for _ in range(SPANS):
        with telemetry.span(
            "process run.start", telemetry.CONSUMER, parent, service="agent", about=run, attributes=attributes
        ):
            telemetry.traceparent()


def cpu(server: EmbeddedProcess) -> float:
    """Return the processor seconds of the server so far, without those of its children."""
    times = psutil.Process(server.pid).cpu_times()
    return float(times.user + times.system)


async def main(options: argparse.Namespace) -> None:
    print(HEAD)
    with sink() as endpoint:
        spans_alone(endpoint, options.rounds)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urn = make_map(folder / "maps", "noop", ["/bin/true"])
        endpoint = (
            stack.enter_context(Jaeger(folder / "jaeger")).endpoint if options.jaeger else stack.enter_context(sink())
        )
        environments = {"without": {}, "with": {"GURNEY_OTLP_ENDPOINT": endpoint}}
        servers = {
            name: stack.enter_context(EmbeddedProcess(folder / name, folder / "maps", environment))
            for name, environment in environments.items()
        }
        works = {name: await ready(stack, server, urn) for name, server in servers.items()}
        for work in works.values():
            await rate(work.job, 2 * IN_FLIGHT)
        await compare(servers, works, options)


async def ready(stack: AsyncExitStack, server: EmbeddedProcess, urn: str) -> Gurney:
    client = await stack.enter_async_context(AsyncClient(server.url, server.token))
    document = await client.maps.settled((await client.maps.register(urn))["id"])
    payload = await client.payloads.create()
    return Gurney(client, document["id"], payload["id"])


async def compare(servers: dict[str, EmbeddedProcess], works: dict[str, Gurney], options: argparse.Namespace) -> None:
    rates: dict[str, list[float]] = {name: [] for name in works}
    spent: dict[str, list[float]] = {name: [] for name in works}
    for number in range(options.rounds):
        for name in sorted(works, reverse=bool(number % 2)):  # each goes first as often as the other
            before = cpu(servers[name])
            rates[name].append(await rate(works[name].job, options.jobs))
            spent[name].append((cpu(servers[name]) - before) / options.jobs * 1000)
            works[name].ended.clear()
    for name in works:
        print(row(f"{name} traces", rates[name], "jobs/s"))
        print(row(f"{name} traces: processor time of the server", spent[name], "ms a job"))
    print(ratio("jobs/s, with to without", rates["with"], rates["without"]))
    print(ratio("processor time, with to without", spent["with"], spent["without"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--jobs", type=int, default=400)
    parser.add_argument("--jaeger", action="store_true")
    asyncio.run(main(parser.parse_args()))
