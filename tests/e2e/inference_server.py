"""`gurney serve inference-server` as a process of its own, what its clients send, and what they are answered."""

import asyncio
import io
import itertools
import json
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp
from yarl import URL

from gurney.client import Client
from gurney.testing.child import Child, free_port
from tests.e2e import work, zips
from tests.e2e.api import Api, Json
from tests.e2e.servers import Server

GURNEY = Path(sys.executable).parent / "gurney"
READY_WITHIN_S = 60
#: Its status codes: alive, failed, finished without output, unknown or deleted.
NO_MODEL, ALIVE, FAILED, NO_OUTPUT, UNKNOWN = 550, 551, 552, 553, 554
TOKEN = "token-of-version-2"
SHELL = "urn:gurney:dir:shell"
MEDIA = {"zip_file": "application/zip", "tar_file": "application/x-tar"}

#: In what tests post here, which stays: others hold the same servers to it that nothing of theirs does.
KEPT = "ZZKEPTZZ"

Listener = Literal["public", "private", "v2"]

_names = itertools.count(1)


@dataclass(frozen=True)
class Reply:
    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def told(self) -> Any:
        """What a refusal says."""
        return self.json["detail"]

    def must(self, status: int) -> "Reply":
        """Return the reply, whose status is this."""
        assert self.status == status, self
        return self


class InferenceServer:
    """The façade in a project of its own, as a process."""

    def __init__(self, server: Server, folder: Path, **changes: str) -> None:
        self.project = f"inference-{next(_names)}"
        with Client(server.url, server.token) as client:
            self.token = client.tokens.create("inference-server", "developer", project=self.project)["token"]
        self.server = server
        self.folder = folder
        ports = {listener: free_port() for listener in ("public", "private", "v2")}
        self.bases = {listener: f"http://127.0.0.1:{port}" for listener, port in ports.items()}
        self.environment = {
            "GURNEY_INFERENCE_SERVER_SERVER": server.url,
            "GURNEY_INFERENCE_SERVER_TOKEN": self.token,
            "GURNEY_INFERENCE_SERVER_DATA": str(folder / "data"),
            "GURNEY_INFERENCE_SERVER_LISTENERS": "public,private,v2",
            "GURNEY_INFERENCE_SERVER_V2_TOKEN": TOKEN,
            "GURNEY_INFERENCE_SERVER_MEMORY": str(64 * 1024**2),
            "GURNEY_MAX_UPLOAD": str(16 * 1024**2),
            "ALLOW_PUBLIC_POST_MODEL": "false",
            **{f"GURNEY_INFERENCE_SERVER_{listener.upper()}_PORT": str(port) for listener, port in ports.items()},
            **changes,
        }
        self.child = Child([GURNEY, "serve", "inference-server"], folder / "log", self.environment)

    def start(self) -> None:
        """Start it, and return when every listener is there. It blocks."""
        wanted = self.environment["GURNEY_INFERENCE_SERVER_LISTENERS"].rpartition(",")[2]
        self.child.log.write_bytes(b"")
        self.child.start().until(lambda: f"inference-server, {wanted}," in self.log, READY_WITHIN_S)

    @property
    def log(self) -> str:
        return self.child.log.read_text()

    @property
    def stumbles(self) -> list[str]:
        """What it has logged of faults of its own."""
        mine = [line for line in self.log.splitlines() if '"part": "inference-server"' in line]
        return [line for line in mine if '"exception"' in line or '"request failed"' in line]

    async def ask(self, listener: Listener, method: str, path: str, **options: Any) -> Reply:
        """Send a request; its path is written as it goes over the wire."""
        url = URL(self.bases[listener] + path, encoded=True)
        timeout = aiohttp.ClientTimeout(total=work.PATIENCE_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, url, allow_redirects=False, **options) as answer,
        ):
            return Reply(answer.status, answer.reason or "", answer.headers, await answer.read())

    async def public(self, method: str, path: str, **options: Any) -> Reply:
        return await self.ask("public", method, path, **options)

    async def private(self, method: str, path: str, **options: Any) -> Reply:
        return await self.ask("private", method, path, **options)

    async def v2(self, method: str, path: str, **options: Any) -> Reply:
        """Send a request of version 2.0, with the token."""
        return await self.ask("v2", method, path, headers={"X-Token": TOKEN} | options.pop("headers", {}), **options)

    async def raw(self, listener: Listener, head: bytes, body: bytes = b"") -> int:
        """Send what no client library would; returns the status."""
        base = URL(self.bases[listener])
        reader, writer = await asyncio.open_connection(base.host, base.port)
        try:
            writer.write(head + b"\r\nHost: here\r\nConnection: close\r\n\r\n" + body)
            await writer.drain()
            async with asyncio.timeout(work.PATIENCE_S):
                return int((await reader.readline()).split()[1])
        finally:
            writer.close()

    # --- what most tests do first ---

    async def model(self, tag: str = SHELL, archive: bytes | None = None, **query: str) -> str:
        """Post a model that needs no GPU, and return its readable id."""
        asked = {"human_readable_id": f"model-{next(_names)}", "container_tag": tag, "use_gpu": "false", **query}
        if archive is not None:
            asked["model_available"] = "true"
        given = {"data": form(archive)} if archive is not None else {}
        (await self.public("POST", "/api/models/", params=asked, **given)).must(200)
        return asked["human_readable_id"]

    async def task(self, model: str, archive: bytes) -> str:
        """Post a task, and return its uid."""
        asked = {"model_human_readable_id": model}
        return str((await self.public("POST", "/api/tasks/", params=asked, data=form(archive))).must(200).json)

    async def told(self, uid: str) -> Json:
        """Return what the private API tells of a task."""
        return dict((await self.private("GET", f"/api/tasks/{uid}")).must(200).json)

    async def until(self, uid: str, status: int) -> Json:
        """Return what is told of a task once it has a status."""
        async with asyncio.timeout(work.PATIENCE_S):
            while (found := await self.told(uid))["status"] != status:
                await asyncio.sleep(0.01)
        return found

    async def output(self, uid: str) -> Reply:
        """Poll for a task's output as clients do."""
        async with asyncio.timeout(work.PATIENCE_S):
            while (answer := await self.public("GET", f"/api/tasks/{uid}")).status == ALIVE:
                await asyncio.sleep(0.01)
        return answer

    async def over(self) -> None:
        """End what still goes on, so that the next test has all the room."""
        for task in (await self.private("GET", "/api/tasks/")).must(200).json:
            if task["status"] in {-1, 2} and not task["is_deleted"]:
                await self.public("DELETE", f"/api/tasks/{task['uid']}")
        async with Api(self.server.url, self.token) as api, asyncio.timeout(work.PATIENCE_S):
            while any(job["state"] not in {"succeeded", "failed", "canceled"} for job in await api.all("/v1/jobs")):
                await asyncio.sleep(0.02)


def packed(script: str = zips.COPY.replace(zips.MARK, KEPT), files: Mapping[str, str] | None = None) -> bytes:
    """Return a zip with a script and what it works on."""
    return zips.packed(script, files or {"in/a.dcm": KEPT, f"in/{KEPT}/Müller.dcm": KEPT * 9})


def form(body: bytes, name: str = "zip_file") -> aiohttp.FormData:
    """Return a body with one file."""
    data = aiohttp.FormData()
    data.add_field(name, io.BytesIO(body), filename="in.zip", content_type=MEDIA.get(name))
    return data


def tarred(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def untarred(body: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        files = {each.name: archive.extractfile(each) for each in archive.getmembers()}
        return {name: file.read() if file else b"" for name, file in files.items()}


def waits(gate: Path, then: str = "") -> str:
    """Return a script that waits until a file is there."""
    return f'while [ ! -e "{gate}" ]; do sleep 0.02; done\n{then}'
