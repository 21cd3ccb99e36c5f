"""Moves one large file through an aiohttp server and the folder store, side by side with `cp` and `sha256sum` of it.

    python bench/transfer.py [--stack] [--mib 1024] [--runs 5] [--loop uvloop] [--read-kib 64]

With --stack through the stack instead: an edge, a payload service, MongoDB and MinIO, each a process of its own.
Every run takes all four, in turn. A ratio is the transfer's rate over the rate of the slower of `cp` and `sha256sum` in
the same run. Memory is the growth of the server's peak over what it held before the transfer. The client is this
process, with a plain socket; uploads count until the answer, so they include the sync to disk, which `cp` does not do.
"""

import argparse
import asyncio
import hashlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from gurney.client import Client
from gurney.objects.folder import FolderObjects
from gurney.objects.port import Digest
from gurney.testing.stack import Stack
from gurney.transfer import open_get, open_put

MIB = 1 << 20


@dataclass
class Options:
    stack: bool
    mib: int
    runs: int
    loop: str
    read_kib: int
    folder: Path | None


@dataclass
class Target:
    """What is measured: an HTTP server, and where it keeps the file."""

    port: int
    pid: int
    path: str = "/object"
    token: str = ""


class Edge:
    """The least that an edge does: stream in, stream out verified."""

    def __init__(self, objects: FolderObjects) -> None:
        self.objects = objects
        self.digests: dict[str, Digest] = {}

    async def put(self, request: web.Request) -> web.Response:
        key = f"pay_bench/{request.match_info['name']}"
        async with open_put(self.objects.sign_put(key)) as put:
            async for chunk in request.content.iter_any():
                await put.write(chunk)
            self.digests[key] = await put.commit()
        return web.Response(status=201, text=self.digests[key].sha256)

    async def get(self, request: web.Request) -> web.StreamResponse:
        key = f"pay_bench/{request.match_info['name']}"
        digest = self.digests[key]
        response = web.StreamResponse(headers={"Content-Length": str(digest.size)})
        async with open_get(self.objects.sign_get(key), expected=digest) as get:
            await response.prepare(request)
            async for chunk in get:
                await response.write(chunk)
        return response

    async def delete(self, request: web.Request) -> web.Response:
        await self.objects.delete([f"pay_bench/{request.match_info['name']}"])
        return web.Response(status=204)


async def serve(root: Path, read_kib: int) -> None:
    objects = FolderObjects(root)
    await objects.open()
    edge = Edge(objects)
    app = web.Application()
    app.add_routes([web.put("/{name}", edge.put), web.get("/{name}", edge.get), web.delete("/{name}", edge.delete)])
    runner = web.AppRunner(app, read_bufsize=read_kib << 10)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


def request(target: Target, method: str, file: Path | None = None) -> tuple[int, bytes]:
    """Send a request and read all of the answer; returns how many bytes its body had, and the last of them."""
    with socket.create_connection(("127.0.0.1", target.port)) as connection:
        length = file.stat().st_size if file else 0
        lines = [f"{method} {target.path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {length}"]
        lines += [f"Authorization: Bearer {target.token}"] if target.token else []
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        if file:
            with file.open("rb") as source:
                connection.sendfile(source)
        buffer = bytearray(MIB)
        taken = connection.recv_into(buffer)
        status, _, rest = bytes(buffer[:taken]).partition(b"\r\n")
        if not status.startswith(b"HTTP/1.1 2"):
            raise SystemExit(f"{method} {target.path}: {status!r} {rest[-200:]!r}")
        last = rest.partition(b"\r\n\r\n")[2]
        got = len(last)
        while taken := connection.recv_into(buffer):
            got += taken
            last = bytes(buffer[max(taken - 4096, 0) : taken])
        return got, last


def memory_kib(pid: int, field: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(field))


def grown(pid: int, work: Callable[[], object]) -> tuple[float, float]:
    """Do the work; returns seconds and MiB by which the process's peak rose over what it held before."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = memory_kib(pid, "VmRSS")
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    return seconds, (memory_kib(pid, "VmHWM") - before) / 1024


def timed(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def measure(options: Options, folder: Path, target: Target) -> None:
    file = folder / "file"
    with file.open("wb") as out:
        for _ in range(options.mib):
            out.write(os.urandom(MIB))
        os.fsync(out.fileno())
    with file.open("rb") as stored:
        digest = hashlib.file_digest(stored, "sha256").hexdigest()

    def upload() -> None:
        if digest.encode() not in request(target, "PUT", file)[1]:
            raise SystemExit("the server stored something else")

    def download() -> None:
        if request(target, "GET")[0] != options.mib * MIB:
            raise SystemExit("the answer broke off")

    ratios: dict[str, list[float]] = {"upload": [], "download": []}
    print(f"{'run':>4}{'cp':>9}{'sha256sum':>11}{'upload':>9}{'download':>10}   MiB/s; server memory +MiB")
    for run in range(options.runs):
        copy = timed("cp", str(file), str(folder / "copy"))
        (folder / "copy").unlink()
        sha = timed("sha256sum", str(file))
        up, up_memory = grown(target.pid, upload)
        down, down_memory = grown(target.pid, download)
        request(target, "DELETE")
        for name, seconds in (("upload", up), ("download", down)):
            ratios[name].append(max(copy, sha) / seconds)
        rates = [options.mib / seconds for seconds in (copy, sha, up, down)]
        cells = "".join(f"{rate:>{width}.0f}" for rate, width in zip(rates, (9, 11, 9, 10), strict=True))
        print(f"{run:>4}{cells}   {up_memory:.0f} up, {down_memory:.0f} down", flush=True)
    for name, values in ratios.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(
            f"{name}: {middle:.2f} of the slower of cp and sha256sum (min {low:.2f}, max {high:.2f}, n={len(values)})"
        )


def target_of(stack: Stack) -> Target:
    """Return the edge of a running stack, with a payload to keep the file in."""
    with Client(stack.url, stack.token) as client:
        payload = client.payloads.create()["id"]
    port = urlsplit(stack.url).port
    return Target(port or 0, stack.processes["edge-1"].pid, f"/v1/payloads/{payload}/files/object", stack.token)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", action="store_true")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="uvloop")
    parser.add_argument("--read-kib", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="where files are written; default: the system's temporary folder")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = vars(parser.parse_args())
    root: Path | None = given.pop("serve")
    options = Options(**given)
    if root is not None:
        if options.loop == "uvloop":
            import uvloop

            uvloop.run(serve(root, options.read_kib))
        else:
            asyncio.run(serve(root, options.read_kib))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.stack:
            with Stack(folder / "data", None, replicas=1, agents=0) as stack:
                measure(options, folder, target_of(stack))
            return
        child = [sys.executable, __file__, "--serve", str(folder / "store"), "--loop", options.loop]
        with subprocess.Popen([*child, "--read-kib", str(options.read_kib)], stdout=subprocess.PIPE) as server:
            try:
                measure(options, folder, Target(int((server.stdout or sys.stdin).readline()), server.pid))
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
