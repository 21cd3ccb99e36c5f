"""Moves one large file through the edge to a real MinIO and back, side by side with the ways it is compared with.

    python bench/transfer_s3.py [--mib 512] [--runs 5] [--loop uvloop]

Every run takes all in turn: `sha256sum` of the file, the minio SDK's own upload (`fput_object`), a presigned PUT
through a bare aiohttp proxy, the upload through the edge; then a presigned GET straight from MinIO, one to which the
edge has sent the client (`s3_redirect`), an unverified one through such a proxy, and the download through the edge,
verified. The edge runs with the payload service, SQLite and a nats-server as in production, in one process; memory is
the growth of its peak over what it held before the transfer.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from figures import HEAD, ratio, row
from transfer import MIB, grown, timed
from yarl import URL

from gurney import telemetry
from gurney.documents.sqlite import SqliteDocuments
from gurney.model.job import JobRefs, JobsAlive
from gurney.objects.calls import ONCE
from gurney.objects.choice import objects_of
from gurney.objects.s3 import S3Objects
from gurney.service import Parts, Service
from gurney.settings import Settings
from gurney.subjects import JOB_ALIVE
from gurney.testing.minio import minio
from gurney.testing.nats import NatsServer
from gurney.testing.s3 import ACCESS_KEY, SECRET_KEY
from services.edge.__main__ import build as build_edge
from services.payload.__main__ import build as build_payload

TOKEN = "gurney_bench"  # noqa: S105
SDK = """
import sys, time
from minio import Minio
host, key, secret, path = sys.argv[1:]
client = Minio(host, key, secret, secure=False)
started = time.perf_counter()
client.fput_object("gurney", "sdk/object", path)
print(time.perf_counter() - started)
client.remove_object("gurney", "sdk/object")
"""


class Proxy:
    """The least that could carry bytes between a client and a signed URL."""

    def __init__(self, objects: S3Objects) -> None:
        self.objects = objects

    async def __aenter__(self) -> str:
        self.session = aiohttp.ClientSession()
        app = web.Application()
        app.add_routes([web.put("/{name}", self.put), web.get("/{name}", self.get), web.delete("/{name}", self.delete)])
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def __aexit__(self, *exc: object) -> None:
        await self.session.close()
        await self.runner.cleanup()

    async def put(self, request: web.Request) -> web.Response:
        url = self.objects.sign_put(f"proxy/{request.match_info['name']}")
        headers = {**ONCE, "Content-Length": request.headers["Content-Length"]}
        async with self.session.put(URL(url, encoded=True), data=request.content, headers=headers) as answer:
            return web.Response(status=201 if answer.ok else 502)

    async def get(self, request: web.Request) -> web.StreamResponse:
        url = self.objects.sign_get(f"proxy/{request.match_info['name']}")
        async with self.session.get(URL(url, encoded=True)) as answer:
            response = web.StreamResponse(headers={"Content-Length": answer.headers["Content-Length"]})
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
        return response

    async def delete(self, request: web.Request) -> web.Response:
        await self.objects.delete([f"proxy/{request.match_info['name']}"])
        return web.Response(status=204)


async def serve(folder: Path, s3_url: str, nats_url: str) -> None:
    """Serve edge, payload service and proxy, and say where."""
    where: dict[str, Any] = {"s3_url": s3_url, "s3_access_key": ACCESS_KEY, "s3_secret_key": SECRET_KEY}
    settings = Settings(nats_url=nats_url, data=folder, port=0, run_secret="s", **where)  # noqa: S106
    telemetry.setup(settings, "bench")
    documents = SqliteDocuments(folder / "documents.sqlite")
    objects = objects_of(settings)
    assert isinstance(objects, S3Objects)

    async def alive(_: JobRefs) -> JobsAlive:
        return JobsAlive(live=(), ended=())

    edge = build_edge(settings, documents=documents, admin_token=TOKEN)
    sends_on = build_edge(settings.model_copy(update={"s3_redirect": True}), documents=documents)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(Service("job", settings).does(Parts(answers={JOB_ALIVE: alive})))
        await stack.enter_async_context(build_payload(settings, documents=documents, objects=objects))
        await stack.enter_async_context(edge)
        await stack.enter_async_context(sends_on)
        proxy = await stack.enter_async_context(Proxy(objects))
        print(edge.url, sends_on.url, proxy, objects.sign_get("proxy/object"), flush=True)
        await asyncio.Event().wait()


def request(
    url: str, method: str, file: Path | None = None, body: bytes = b"", *, moved: bool = False
) -> tuple[int, bytes]:
    """Send a request and read all of the answer; returns how many bytes its body had, and the first of them.

    `moved`: the answer says where to go, and that is returned instead.
    """
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 80)) as connection:
        length = file.stat().st_size if file else len(body)
        head = f"{method} {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
        kind = "application/json" if body else "application/octet-stream"
        head += f"Authorization: Bearer {TOKEN}\r\n" if "X-Amz" not in url else ""
        head += f"Content-Type: {kind}\r\nContent-Length: {length}\r\n" if method in {"PUT", "POST"} else ""
        connection.sendall(head.encode() + b"\r\n" + body)
        if file:
            with file.open("rb") as source:
                connection.sendfile(source)
        buffer = bytearray(MIB)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += bytes(buffer[: connection.recv_into(buffer)])
        status, _, first = answer.partition(b"\r\n\r\n")
        if moved:
            return 0, status.partition(b"Location: ")[2].partition(b"\r\n")[0]
        if not status.startswith(b"HTTP/1.1 2"):
            raise SystemExit(f"{method} {parts.path}: {answer[-500:]!r}")
        got = len(first)
        while taken := connection.recv_into(buffer):
            got += taken
        return got, first


def seconds(url: str, method: str, file: Path | None = None, expected: int | None = None) -> float:
    started = time.perf_counter()
    got, _ = request(url, method, file)
    if expected is not None and got != expected:
        raise SystemExit(f"{method}: {got} bytes instead of {expected}")
    return time.perf_counter() - started


def redirected(url: str, expected: int) -> float:
    """Ask the edge where to go, and fetch from there."""
    started = time.perf_counter()
    _, head = request(url, "GET", moved=True)
    got, _ = request(head.decode(), "GET")
    if got != expected:
        raise SystemExit(f"GET: {got} bytes instead of {expected}")
    return time.perf_counter() - started


def measure(mib: int, runs: int, folder: Path, server: "subprocess.Popen[bytes]", s3_url: str) -> None:
    assert server.stdout
    edge, sends_on, proxy, direct = server.stdout.readline().decode().split()
    file = folder / "file"
    with file.open("wb") as out:
        for _ in range(mib):
            out.write(os.urandom(MIB))
        os.fsync(out.fileno())
    size = file.stat().st_size
    payload = request(f"{edge}/v1/payloads", "POST", body=b"{}")[1].partition(b'"id":"')[2].partition(b'"')[0].decode()
    ours = f"{edge}/v1/payloads/{payload}/files/object"
    sdk = [sys.executable, "-c", SDK, urlsplit(s3_url).netloc, ACCESS_KEY, SECRET_KEY, str(file)]
    times: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {"upload": [], "download": []}
    for run in range(runs + 1):  # the first one warms up
        now: dict[str, float] = {}
        now["sha256sum"] = timed("sha256sum", str(file))
        now["minio SDK upload"] = float(subprocess.run(sdk, check=True, stdout=subprocess.PIPE).stdout)
        now["proxy upload"] = seconds(f"{proxy}/object", "PUT", file)
        now["edge upload"], up = grown(server.pid, lambda: request(ours, "PUT", file))
        now["direct download"] = seconds(direct, "GET", expected=size)
        now["redirected download"] = redirected(ours.replace(edge, sends_on), size)
        now["proxy download"] = seconds(f"{proxy}/object", "GET", expected=size)
        now["edge download"], down = grown(server.pid, lambda: seconds(ours, "GET", expected=size))
        request(f"{proxy}/object", "DELETE")
        request(ours, "DELETE")
        print(f"{run}: " + ", ".join(f"{name} {mib / each:.0f}" for name, each in now.items()), "MiB/s", flush=True)
        if run:
            for name, each in now.items():
                times.setdefault(name, []).append(each)
            memory["upload"].append(up)
            memory["download"].append(down)
    print(HEAD)
    for name, values in times.items():
        print(row(name, [mib / each for each in values], "MiB/s"))
    slower = [max(pair) for pair in zip(times["sha256sum"], times["proxy upload"], strict=True)]
    print(ratio("edge upload to the minio SDK's", times["minio SDK upload"], times["edge upload"]))
    print(ratio("edge upload to the slower of sha256sum and proxy", slower, times["edge upload"]))
    print(ratio("edge download to the unverified proxy's", times["proxy download"], times["edge download"]))
    print(ratio("redirected download to a direct one", times["direct download"], times["redirected download"]))
    for name, values in memory.items():
        print(row(f"memory of the server, {name}", values, "MiB more"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="uvloop")
    parser.add_argument("--folder", type=Path, help="where files are written; default: the system's temporary folder")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serving = serve(Path(given.serve[0]), *given.serve[1:])
        if given.loop == "uvloop":
            import uvloop

            uvloop.run(serving)
        else:
            asyncio.run(serving)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        nats, s3 = NatsServer(folder / "nats").start(), minio(folder / "minio").start()
        stack.callback(nats.stop)
        stack.callback(s3.stop)
        (folder / "data").mkdir()
        child = [sys.executable, __file__, "--loop", given.loop, "--serve", str(folder / "data"), s3.url, nats.url]
        with subprocess.Popen(child, stdout=subprocess.PIPE, stderr=(folder / "log").open("wb")) as server:
            try:
                measure(given.mib, given.runs, folder, server, s3.url)
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
