"""Clients that go on whatever happens to the server: they upload, submit, ask again, and take notes."""

import asyncio
import hashlib
import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from standardwebhooks import Webhook

from gurney.runtime.docker.daemon import Client
from gurney.testing.docker import make_image
from gurney.testing.folder_maps import make_map
from tests.e2e.kill_server import Insistent, LostError

KIB, MIB = 1024, 1024**2
#: Kind of job -> the state that it ends in.
ENDS = {
    "quick": "succeeded",
    "slow": "succeeded",
    "failing": "failed",
    "image": "succeeded",
    "failing-image": "failed",
    "quick-image": "succeeded",
}
#: Kinds that are images, for a server that has a Docker daemon; the others are folders. Kind -> exit code.
IMAGES = {"image": 0, "failing-image": 7, "quick-image": 0}
#: How often the kinds come of which there are some under any load.
_WEIGHTS = {"quick": 6, "slow": 2, "failing": 2, "image": 1, "failing-image": 1}
EXIT_CODE = 7
#: More than the reading of a manifest may take.
READY_WITHIN_S = 150
SIZES = (0, 1, 1000, 64 * KIB, 300 * KIB, MIB + 1, 3 * MIB)
TERMINAL = ("succeeded", "failed", "canceled")

#: SHA-256 of a file; None: there is none.
Digest = str | None


def make_maps(maps: Path, starts: Path) -> Path:
    """Write the MAPs. Each run appends a line when it begins and one before it ends."""
    note = f'echo "$GURNEY_JOB_ID $GURNEY_ATTEMPT $$ %s" >> "{starts}"'
    scripts = {
        "quick": "",
        "slow": 'sleep 0.$(( $$ % 10 )); sleep 0.5; echo "$GURNEY_JOB_ID" > "$HOLOSCAN_OUTPUT_PATH/who"',
        "failing": f"status={EXIT_CODE}",
    }
    for name, script in scripts.items():
        lines = ("status=0", note % "start", script, note % "end", "exit $status")
        make_map(maps, name, ["/bin/sh", "-c", "\n".join(lines)])
    return maps


def make_images(client: Client) -> dict[str, str]:
    """Make the images; returns kind -> reference. Each run appends a line to its output, or does nothing."""
    references = {}
    for kind, code in IMAGES.items():
        work = 'echo "$GURNEY_JOB_ID" >> "$HOLOSCAN_OUTPUT_PATH/who"; sleep 0.$(( $RANDOM % 10 )); sleep 1; '
        script = f"{'' if kind == 'quick-image' else work}exit {code}"
        app = {"command": json.dumps(["sh", "-c", script]), "input": {"path": "in/"}, "output": {"path": "out/"}}
        package = {"resources": {"cpu": 0.2, "memory": "16Mi"}}
        references[kind] = f"gurney-test-{kind}:1"
        files = {"etc/holoscan/app.json": json.dumps(app), "etc/holoscan/pkg.json": json.dumps(package)}
        make_image(client, references[kind], files)
    return references


@dataclass
class SentFile:
    """One path of one payload."""

    #: What may lie there now: one digest where the last answer came, more where it did not.
    allowed: set[Digest] = field(default_factory=lambda: {None})
    sizes: dict[str, int] = field(default_factory=dict)
    #: A PUT is under way.
    moving: bool = False


@dataclass
class SentJob:
    key: str
    kind: str
    body: dict[str, Any]
    #: None until an answer came.
    id: str | None = None
    asking: bool = False
    #: How it ended, once that was seen.
    state: str | None = None


class Load:
    """All clients, and what they know."""

    def __init__(self, server: Insistent, seed: int, *, has_images: bool = False) -> None:
        self.server = server
        self._weights = {kind: weight for kind, weight in _WEIGHTS.items() if has_images or kind not in IMAGES}
        self.files: dict[tuple[str, str], SentFile] = {}
        self.jobs: dict[str, SentJob] = {}
        #: What no client should have met.
        self.faults: list[str] = []
        self._seed = seed
        self._keys = itertools.count(1)
        self._going = True

    @asynccontextmanager
    async def running(self, uploaders: int = 3, submitters: int = 4) -> AsyncIterator[None]:
        """Run clients; leaving, each does what it had begun."""
        makers = [self._uploader] * uploaders + [self._submitter] * submitters
        clients = [asyncio.create_task(self._client(n, make)) for n, make in enumerate(makers)]
        try:
            yield
            self._going = False
            await asyncio.gather(*clients)
        finally:
            self._going = False
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)

    async def _client(self, number: int, make: Callable[[random.Random], Awaitable[None]]) -> None:
        await make(random.Random(f"{self._seed} {number}"))

    # --- files ---

    async def _uploader(self, rng: random.Random) -> None:
        """Write, replace and remove a few files of one payload, over and over."""
        payload = await self._payload()
        while self._going:
            path = rng.choice(["a", "b", "sub/c", "sub/d", "e", "f"])
            if rng.random() < 0.1:
                await self._remove(payload, path)
            else:
                await self._put(payload, path, _content(rng), rng)

    async def _payload(self) -> str:
        made = await self._insist_post("/v1/payloads", {}, f"payload-{next(self._keys)}")
        return str(made["id"])

    async def _put(self, payload: str, path: str, content: bytes, rng: random.Random) -> None:
        """Upload until an answer comes; sometimes look what a lost answer left instead, and let it be."""
        file = self.files.setdefault((payload, path), SentFile())
        digest = hashlib.sha256(content).hexdigest()
        file.sizes[digest] = len(content)
        while True:
            await self.server.up.wait()
            file.allowed.add(digest)
            file.moving = True
            try:
                url = f"/v1/payloads/{payload}/files/{path}"
                answer = await self.server.ask("PUT", url, data=_paced(content, rng.random() < 0.5))
            except LostError:
                if rng.random() < 0.3:
                    await self.look(payload, path)
                    return
                continue
            finally:
                file.moving = False
            if answer.status not in {200, 201} or answer.json["sha256"] != digest:
                self.faults.append(f"PUT {payload}/{path}: {answer.status} {answer.body[:300]!r}")
            file.allowed = {digest}
            return

    async def _remove(self, payload: str, path: str) -> None:
        file = self.files.setdefault((payload, path), SentFile())
        file.allowed.add(None)
        answer = await self.server.insist("DELETE", f"/v1/payloads/{payload}/files/{path}")
        if answer.status not in {204, 404}:
            self.faults.append(f"DELETE {payload}/{path}: {answer.status} {answer.body[:300]!r}")
        file.allowed = {None}

    async def look(self, payload: str, path: str) -> None:
        """Download a file: it is one that was sent, whole, and nothing that was acknowledged is missing."""
        file = self.files[payload, path]
        answer = await self.server.insist("GET", f"/v1/payloads/{payload}/files/{path}")
        found = hashlib.sha256(answer.body).hexdigest() if answer.status == 200 else None
        if answer.status not in {200, 404}:
            self.faults.append(f"GET {payload}/{path}: {answer.status} {answer.body[:300]!r}")
        elif found not in file.allowed:
            size = len(answer.body) if found else None
            self.faults.append(f"{payload}/{path} is {found} ({size} bytes), not one of {file.allowed}")
        if not self.server.is_late:
            file.allowed = {found}

    # --- jobs ---

    async def _submitter(self, rng: random.Random) -> None:
        """Submit jobs, one or several at once, and wait for one of them."""
        while self._going:
            payload = await self._payload()
            for number in range(rng.choice([0, 1, 1, 2])):
                await self._put(payload, f"in-{number}", _content(rng)[: 64 * KIB], rng)
            count = rng.choice([1, 1, 2, 6])
            kinds = rng.choices(list(self._weights), weights=list(self._weights.values()), k=count)
            ids = await asyncio.gather(*(self._submit(payload, kind) for kind in kinds))
            await self.end_of(rng.choice(ids))
            if rng.random() < 0.3:
                await self._submit_again(rng.choice([job for job in self.jobs.values() if job.id]))

    async def _submit(self, payload: str, kind: str) -> str:
        key = f"job-{next(self._keys)}"
        job = self.jobs[key] = SentJob(key, kind, {"map": kind, "payload": payload, "labels": {"key": key}})
        job.asking = True
        job.id = (await self._insist_post("/v1/jobs", job.body, key))["id"]
        job.asking = False
        return str(job.id)

    async def _submit_again(self, job: SentJob) -> None:
        """Repeat a request that was answered long ago: it is the same job."""
        made = await self._insist_post("/v1/jobs", job.body, job.key)
        if made["id"] != job.id:
            self.faults.append(f"{job.key} is {job.id}, and asked for again {made['id']}")

    async def _insist_post(self, path: str, body: dict[str, Any], key: str) -> dict[str, Any]:
        answer = await self.server.insist("POST", path, json=body, headers={"Idempotency-Key": key})
        if answer.status != 201:
            self.faults.append(f"POST {path} {body}: {answer.status} {answer.body[:300]!r}")
            raise AssertionError(self.faults[-1])
        return dict(answer.json)

    async def end_of(self, job: str) -> None:
        """Wait for a job's end, unless it is time to go."""
        while self._going:
            answer = await self.server.insist("GET", f"/v1/jobs/{job}", headers={"Prefer": "wait=5"})
            if answer.status != 200:
                self.faults.append(f"GET job {job}: {answer.status}")
                return
            if answer.json["state"] in TERMINAL:
                return


def _content(rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice(SIZES))


async def _paced(content: bytes, slow: bool) -> AsyncIterator[bytes]:  # noqa: FBT001
    """Yield a body, slowly if asked for, so that it is under way for a while."""
    for start in range(0, len(content), 64 * KIB):
        yield content[start : start + 64 * KIB]
        if slow:
            await asyncio.sleep(0.005)


class Listener:
    """The job handler: it outlives the server."""

    def __init__(self) -> None:
        #: Job -> event -> the `webhook-id`s under which it was told.
        self.told: dict[str, dict[str, set[str]]] = {}
        self.times = 0
        self.faults: list[str] = []
        self.secret = ""

    def of(self, job: str) -> dict[str, set[str]]:
        return self.told.get(job, {})

    async def _receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            event = Webhook(self.secret).verify(body, dict(request.headers))
        except Exception as error:
            self.faults.append(f"a webhook that cannot be verified: {error!r}")
            return web.Response(status=400)
        self.times += 1
        events = self.told.setdefault(event["data"]["id"], {})
        events.setdefault(event["type"], set()).add(request.headers["webhook-id"])
        return web.Response(status=204)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Yield the address."""
        app = web.Application()
        app.router.add_post("/", self._receive)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        try:
            yield f"http://{host}:{port}/"
        finally:
            await runner.cleanup()


async def prepare(server: Insistent, listener: Listener, url: str, images: Mapping[str, str] | None = None) -> None:
    """Register the MAPs, and the handler that listens at `url`. `images`: kind -> reference."""
    folders = {kind: f"urn:gurney:dir:{kind}" for kind in ENDS if kind not in IMAGES}
    for kind, urn in {**folders, **(images or {})}.items():
        asked = {"urn": urn, "name": kind}
        made = await server.insist("POST", "/v1/maps", json=asked, headers={"Idempotency-Key": kind})
        async with asyncio.timeout(READY_WITHIN_S):
            while (await server.insist("GET", f"/v1/maps/{made.json['id']}")).json["state"] != "ready":
                await asyncio.sleep(0.05)
    handler = await server.insist("POST", "/v1/handlers", json={"url": url})
    listener.secret = handler.json["secret"]
