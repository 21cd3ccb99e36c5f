"""The demo: a real CT goes in, a segmentation comes out.

Starts an embedded server on a folder of its own, registers the sample MAP `ct-body` and a job handler, uploads a CT
series, runs the job, checks the notification's signature, and says where the picture lies.

With `GURNEY_URL` and `GURNEY_TOKEN` it uses a server that runs already, and there the image `urn:oci:ct-body` or what
`GURNEY_DEMO_MAP` names. `GURNEY_DEMO_LISTEN` is then this host's address as the server reaches it: without one the
demo has no job handler.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web
from rich.console import Console
from standardwebhooks import Webhook

from gurney.cli.jobs import print_story
from gurney.cli.output import size
from gurney.cli.progress import bar
from gurney.client import AsyncClient
from gurney.client.http import Json
from gurney.client.payloads import local_files

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("GURNEY_DEMO", ROOT / "demo-data"))
STARTS_WITHIN_S = 30.0
#: A server that runs already.
THERE = os.environ.get("GURNEY_URL", "")
MAP = os.environ.get("GURNEY_DEMO_MAP", "urn:oci:ct-body") if THERE else "urn:gurney:dir:ct-body"
LISTEN = os.environ.get("GURNEY_DEMO_LISTEN", "") if THERE else "127.0.0.1"

say = Console(highlight=False, soft_wrap=True).print


def head_ct() -> Path:
    """Return a folder with a real CT series."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    series = FOLDER / "ct"
    shutil.rmtree(series, ignore_errors=True)
    subprocess.run([sys.executable, ROOT / "samples" / "head_ct.py", series], check=True)
    return series


@asynccontextmanager
async def server() -> AsyncIterator[AsyncClient]:
    """Connect to the server that the environment names, or else run one."""
    if not THERE:
        async with embedded() as client:
            yield client
    else:
        async with AsyncClient(THERE, os.environ["GURNEY_TOKEN"]) as client:
            say(f"Gurney serves {THERE}")
            yield client


@asynccontextmanager
async def embedded() -> AsyncIterator[AsyncClient]:
    """Run an embedded server on a fresh folder and connect to it."""
    data = FOLDER / "server"
    await asyncio.to_thread(shutil.rmtree, data, ignore_errors=True)
    command = ["gurney", "up", "--data", str(data), "--port", "0", "--maps", str(ROOT / "samples")]
    with (FOLDER / "server.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).parent / command[0]), *command[1:], stdout=asyncio.subprocess.PIPE, stderr=log
        )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(STARTS_WITHIN_S):
            ready = (await process.stdout.readline()).decode().strip()
        if not ready:
            sys.exit(f"the server did not start: see {FOLDER / 'server.log'}")
        say(ready)
        async with AsyncClient((data / "url").read_text().strip(), (data / "token").read_text().strip()) as client:
            yield client
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await process.wait()


class Handler:
    """A job handler: an HTTP server that checks the signature of what it is told."""

    def __init__(self) -> None:
        self.secret = ""
        self.told: asyncio.Future[Json] = asyncio.get_running_loop().create_future()

    async def receive(self, request: web.Request) -> web.Response:
        body = Webhook(self.secret).verify(await request.read(), dict(request.headers))
        if not self.told.done():
            self.told.set_result(body)
        return web.Response(status=204)


@asynccontextmanager
async def handler(client: AsyncClient) -> AsyncIterator[Handler | None]:
    """Run a job handler and register it; None where there is no address for one."""
    if not LISTEN:
        yield None
        return
    listener = Handler()
    app = web.Application()
    app.router.add_post("/", listener.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, LISTEN, 0).start()
    host, port = runner.addresses[0][:2]
    registered = await client.handlers.create(f"http://{host}:{port}/")
    listener.secret = registered["secret"]
    try:
        yield listener
    finally:
        await client.handlers.delete(registered["id"])
        await runner.cleanup()


async def run_job(client: AsyncClient, series: Path) -> Json:
    """Register, upload, submit, follow to the end."""
    registered = await client.maps.register(MAP, name=None if THERE else "ct-body")
    ready = await client.maps.settled(registered["id"])
    if ready["state"] != "ready":
        sys.exit(f"the sample MAP is {ready['state']}: {ready['reason']}")
    say(f"MAP {ready['urn']} is ready: {ready['digest'][:19]}...")
    payload = await client.payloads.create(name=None if THERE else "ct")
    total = await asyncio.to_thread(lambda: sum(file.stat().st_size for _, file in local_files([series])))
    with bar("uploading", total, hidden=False) as moved:
        count = await client.payloads.upload(payload["id"], [series], moved=moved)
    say(f"payload {payload['id']}: {count} files, {size(total)}")
    job = await client.jobs.create(map=ready["id"], payload=payload["id"])
    say(f"job {job['id']} is {job['state']}")
    async for text in client.jobs.logs(job["id"], follow=True):
        say("  | " + text.rstrip("\n").replace("\n", "\n  | "), markup=False)
    return await client.jobs.wait(job["id"])


def show_results(job: Json, results: Path) -> None:
    """Say what came out."""
    areas = json.loads((results / "metadata.json").read_text())
    say(f"results in {results}: {', '.join(sorted(file.name for file in results.iterdir()))}")
    for segment in areas["segments"]:
        say(f"  {segment['name'].replace('_', ' ')}: {segment['volume_mm3'] / 1e6:.2f} l", markup=False)
    say(f"job took {json.dumps(job['timings'])}")
    say(f"[bold]Look at the segmentation:[/bold] {results / 'overlay.png'}")


async def main() -> int:
    series = await asyncio.to_thread(head_ct)
    async with server() as client, handler(client) as listener:
        job = await run_job(client, series)
        if listener:
            async with asyncio.timeout(30):
                told = await listener.told
            say(f"the job handler was told, signature valid: {told['type']} {told['data']['id']}")
        print_story(await client.jobs.story(job["id"]))
        if job["state"] != "succeeded":
            say(f"the job {job['state']}: {job['reason']}", markup=False)
            return 1
        results = FOLDER / "results"
        shutil.rmtree(results, ignore_errors=True)
        await client.jobs.download(job["id"], results)
        show_results(job, results)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
