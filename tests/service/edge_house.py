"""An edge with tiny owners behind it, for the tests of its streams; bytes lie in a real folder store."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import ClientResponse, ClientSession
from yarl import URL

from gurney import clock, ids
from gurney.documents.sqlite import SqliteDocuments
from gurney.errors import NameTaken, NotFound
from gurney.model.access import Caller, Role
from gurney.model.base import Message
from gurney.model.common import Empty, Health, Page, Ref
from gurney.model.event import event_of
from gurney.model.job import Admission, Job, JobEvent, JobGet, JobState, MapRef, RunRequest
from gurney.model.payload import (
    AbandonUploads,
    BeginUploads,
    BegunUpload,
    BegunUploads,
    Committed,
    CommitUploads,
    FileList,
    FileView,
    LogRef,
    Payload,
    PayloadCreate,
    PayloadState,
    RemoveFile,
    SignedFile,
    SignedFiles,
    SignFiles,
)
from gurney.model.resources import Resources
from gurney.model.run import LogChunk
from gurney.objects.folder import FolderObjects
from gurney.service import Parts, Service
from gurney.settings import Settings
from gurney.subjects import (
    HEALTH,
    JOB_EVENT,
    JOB_GET,
    LOG_CHUNK,
    PAYLOAD_ABANDON,
    PAYLOAD_BEGIN,
    PAYLOAD_COMMIT,
    PAYLOAD_CREATE,
    PAYLOAD_DELETE,
    PAYLOAD_DISCARD,
    PAYLOAD_FILES,
    PAYLOAD_GET,
    PAYLOAD_LOG,
    PAYLOAD_OPEN,
    PAYLOAD_REMOVE,
    PAYLOAD_SIGN,
)
from gurney.transfer import open_put
from services.edge.__main__ import build
from services.edge.auth import new_token
from services.edge.repository import TOKENS
from services.edge.server import EdgeService

SECRET = "gurney_administrator"
NODE = "n1"


@dataclass
class Payloads:
    """Owns payloads and files, as far as the edge can tell."""

    objects: FolderObjects
    payloads: dict[str, Payload] = field(default_factory=dict)
    files: dict[str, dict[str, tuple[FileView, str]]] = field(default_factory=dict)
    logs: dict[tuple[str, int], tuple[FileView, str]] = field(default_factory=dict)
    abandoned: list[str] = field(default_factory=list)
    pending: set[str] = field(default_factory=set)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    #: Called when URLs were given out.
    on_sign: Callable[[], object] = lambda: None
    #: Called when files were listed.
    on_list: Callable[[], object] = lambda: None
    #: Awaited before files are committed, and after a payload was opened.
    on_commit: Callable[[], Awaitable[object]] | None = None
    on_open: Callable[[], Awaitable[object]] | None = None

    def answers(self) -> dict[Any, Any]:
        return {
            PAYLOAD_CREATE: self.create,
            PAYLOAD_OPEN: self.open,
            PAYLOAD_DISCARD: self.discard,
            PAYLOAD_GET: self.get,
            PAYLOAD_DELETE: self.delete,
            PAYLOAD_FILES: self.list,
            PAYLOAD_SIGN: self.sign,
            PAYLOAD_BEGIN: self.begin,
            PAYLOAD_COMMIT: self.commit,
            PAYLOAD_ABANDON: self.abandon,
            PAYLOAD_REMOVE: self.remove,
            PAYLOAD_LOG: self.log,
        }

    def add(self, **changes: Any) -> Payload:
        now = clock.now()
        payload = Payload(id=ids.new_id("pay"), created_at=now, updated_at=now, state=PayloadState.OPEN).but(**changes)
        self.payloads[payload.id] = payload
        self.files[payload.id] = {}
        return payload

    async def create(self, asked: PayloadCreate) -> Payload:
        for payload in self.payloads.values():
            if asked.idempotency and payload.idempotency and payload.idempotency.key == asked.idempotency.key:
                return await self.get(Ref(caller=asked.caller, ref=payload.id))
            if asked.body.name and payload.name == asked.body.name:
                raise NameTaken("taken")
        body = asked.body
        more = {"name": body.name, "labels": body.labels, "keep": body.keep, "idempotency": asked.idempotency}
        state = PayloadState.FILLING if asked.filling else PayloadState.OPEN
        return self.add(id=asked.id or ids.new_id("pay"), state=state, **more)

    async def open(self, asked: Ref) -> Payload:
        found = self._payload(asked.ref, asked.caller)
        self.payloads[found.id] = found.but(state=PayloadState.OPEN)
        if self.on_open:
            await self.on_open()
        return await self.get(asked)

    async def get(self, asked: Ref) -> Payload:
        found = self._payload(asked.ref, asked.caller)
        return found.but(files=len(self.files[found.id]))

    async def discard(self, asked: Ref) -> Empty:
        filling = self._payload(asked.ref, asked.caller).state is PayloadState.FILLING
        return await self.delete(asked) if filling else Empty()

    async def delete(self, asked: Ref) -> Empty:
        found = self._payload(asked.ref, asked.caller)
        del self.payloads[found.id]
        self.pending -= {key for key in self.pending if key.startswith(found.id)}
        return Empty()

    async def list(self, asked: FileList) -> Page[FileView]:
        files = self.files[self._payload(asked.payload, asked.caller).id]
        views = [files[path][0] for path in sorted(files) if path.startswith(asked.prefix)]
        start = int(asked.cursor or 0)
        limit = min(asked.limit, 3)  # so that even small payloads have pages
        more = str(start + limit) if start + limit < len(views) else None
        self.on_list()
        return Page(items=tuple(views[start : start + limit]), next_cursor=more)

    async def sign(self, asked: SignFiles) -> SignedFiles:
        payload = self._payload(asked.payload, asked.caller).id
        signed = SignedFiles(items=tuple(self._signed(self.files[payload].get(path)) for path in asked.paths))
        self.on_sign()
        return signed

    async def begin(self, asked: BeginUploads) -> BegunUploads:
        payload = self._payload(asked.owner, asked.caller).id
        keys = {path: f"{payload}/{ids.new_id('upl')}" for path in asked.paths}
        self.pending |= set(keys.values())
        items = (BegunUpload(path=path, key=key, url=self.objects.sign_put(key)) for path, key in keys.items())
        return BegunUploads(owner=payload, items=tuple(items))

    async def commit(self, asked: CommitUploads) -> Committed:
        payload = self._payload(asked.owner, asked.caller).id
        if self.on_commit:
            await self.on_commit()
        replaced = tuple(item.path for item in asked.items if item.path in self.files[payload])
        views = []
        for item in asked.items:
            view = FileView(path=item.path, size=item.size, sha256=item.sha256, created_at=clock.now())
            self.files[payload][item.path] = (view, item.key)
            self.pending.discard(item.key)
            views.append(view)
        return Committed(items=tuple(views), replaced=replaced)

    async def abandon(self, asked: AbandonUploads) -> Empty:
        keys = [key for _, key in asked.items]
        self.pending -= set(keys)
        async with self.changed:
            self.abandoned += [path for path, _ in asked.items]
            self.changed.notify_all()
        return Empty()

    async def remove(self, asked: RemoveFile) -> Empty:
        files = self.files[self._payload(asked.payload, asked.caller).id]
        if files.pop(asked.path, None) is None:
            raise NotFound("there is no such file")
        return Empty()

    async def log(self, asked: LogRef) -> SignedFile:
        return self._signed(self.logs.get((asked.job, asked.attempt)))

    async def keep_log(self, job: str, attempt: int, content: bytes) -> None:
        """Keep a log as an agent does when the run has ended."""
        self.logs[job, attempt] = await stored(self.objects, f"{job}/{attempt}", f"{attempt}.log", content)

    def _payload(self, ref: str, caller: Caller | None) -> Payload:
        found = next((each for each in self.payloads.values() if ref in {each.id, each.name}), None)
        if found is None or (caller and not caller.sees(found)):
            raise NotFound(f"there is no payload {ref}")
        return found

    def _signed(self, found: tuple[FileView, str] | None) -> SignedFile:
        if found is None:
            raise NotFound("there is no such file")
        return SignedFile(file=found[0], url=self.objects.sign_get(found[1]))


async def stored(objects: FolderObjects, key: str, path: str, content: bytes) -> tuple[FileView, str]:
    """Store bytes and return what tells of them."""
    async with open_put(objects.sign_put(key)) as put:
        await put.write(content)
        digest = await put.commit()
    return FileView(path=path, size=digest.size, sha256=digest.sha256, created_at=clock.now()), key


@dataclass
class Jobs:
    """Owns jobs, as far as the edge can tell; publishes what a test says."""

    service: Service
    jobs: dict[str, Job] = field(default_factory=dict)
    asked: int = 0

    def add(self, **changes: Any) -> Job:
        job = a_job(**changes)
        self.jobs[job.id] = job
        return job

    async def get(self, asked: JobGet) -> Job:
        self.asked += 1
        found = self.jobs.get(asked.job)
        if found is None or (asked.caller and not asked.caller.sees(found)):
            raise NotFound(f"there is no job {asked.job}")
        return found

    async def tell(self, job: Job, event: str) -> None:
        """Publish an event of a job."""
        data = JobEvent(
            id=job.id, event=event, event_id=ids.new_id("evt"), at=clock.now(), project=job.project,
            created_by=job.created_by, name=job.name, labels=job.labels, map=job.map, payload=job.payload,
            results=job.results, state=job.state, attempt=job.attempt, created_at=job.created_at,
        )  # fmt: skip
        await self.publish(JOB_EVENT.of(event=event, job_id=job.id), data)

    async def publish(self, subject: str, data: Message) -> None:
        out = event_of(subject, data, id=ids.new_id("evt"), source="job", at=clock.now())
        await self.service.bus.publish_events([out])

    async def end(self, job: Job, state: JobState = JobState.SUCCEEDED, **changes: Any) -> Job:
        """End a job: its document first, then its event."""
        ended = self.jobs[job.id] = self.jobs[job.id].but(state=state, stopped_at=clock.now(), **changes)
        await self.tell(ended, state)
        return ended

    async def write(self, job: Job, offset: int, text: str, *, attempt: int = 1) -> None:
        """Publish a chunk of a log, as an agent does, and wait until the stream has it."""
        run_id = ids.run_id(job.id, attempt)
        chunk = LogChunk(run_id=run_id, offset=offset, size=len(text.encode()), text=text)
        await self.service.bus.js.publish(LOG_CHUNK.of(node_id=NODE, run_id=run_id), chunk.encode())


def a_job(**changes: Any) -> Job:
    """Return a job that runs, with these changes."""
    request = RunRequest(
        urn="urn:gurney:dir:x", digest="sha256:00", generation="monai", command=("true",), input_path="/in",
        output_path="/out", payload="pay_x", resources=Resources(cpu=1, memory=1),
    )  # fmt: skip
    job = Job(
        id=ids.new_id("job"), created_at=clock.now(), payload="pay_x", state=JobState.RUNNING, request=request,
        map=MapRef(id="map_x", urn=request.urn, digest=""), resources=request.resources, admission=Admission.QUEUE,
    )  # fmt: skip
    return job.but(**changes)


@dataclass
class House:
    """All of it."""

    edge: EdgeService
    payloads: Payloads
    jobs: Jobs
    documents: SqliteDocuments
    session: ClientSession
    settings: Settings

    def request(self, method: str, path: str, *, token: str = SECRET, **options: Any) -> Any:
        """Ask the edge; the path goes out as it is."""
        headers = {"Authorization": f"Bearer {token}"} | options.pop("headers", {})
        if isinstance(options.get("data"), bytes):
            options["data"] = io.BytesIO(options["data"])
        return self.session.request(method, URL(self.edge.url + path, encoded=True), headers=headers, **options)

    async def put(self, payload: str, path: str, data: Any, **options: Any) -> tuple[int, dict[str, Any]]:
        """Upload a file; the path goes out as it is."""
        async with self.request("PUT", f"/v1/payloads/{payload}/files/{path}", data=data, **options) as response:
            return response.status, json.loads(await response.read())

    async def get(self, path: str, **options: Any) -> tuple[int, bytes, Any]:
        async with self.request("GET", path, **options) as response:
            return response.status, await response.read(), response.headers

    async def token(self, role: Role, subject: str, project: str = "default") -> str:
        """Return the secret of a new token."""
        secret = f"gurney_{ids.new_secret()}"
        token = new_token(secret, subject, role, created_by="test", project=project)
        await self.edge.store.insert(TOKENS, token)
        return secret

    @asynccontextmanager
    async def events(self, path: str, **options: Any) -> AsyncIterator["Events"]:
        async with self.request("GET", path, **options) as response:
            assert response.status == 200, await response.read()
            yield Events(response)

    async def consumers(self, stream: str) -> int:
        """How many consumers a stream has."""
        return (await self.jobs.service.bus.js.stream_info(stream)).state.consumer_count


@dataclass
class Event:
    id: str
    name: str
    data: Any


class Events:
    """Reads server-sent events."""

    def __init__(self, response: ClientResponse) -> None:
        self.response = response
        self._events = self._read()

    async def _read(self) -> AsyncIterator[Event]:
        fields: dict[str, str] = {}
        async for raw in self.response.content:
            line = raw.decode().rstrip("\n")
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "data" in fields:
                yield Event(fields.get("id", ""), fields["event"], json.loads(fields["data"]))
                fields = {}

    async def take(self, number: int) -> list[Event]:
        """Return the next events; fails where the stream ends before."""
        taken: list[Event] = []
        async with asyncio.timeout(20):
            while len(taken) < number:
                taken.append(await anext(self._events))
        return taken

    async def rest(self) -> list[Event]:
        """Return all events up to the end of the stream."""
        async with asyncio.timeout(20):
            return [event async for event in self._events]


@asynccontextmanager
async def house(nats_url: str, folder: Path, **settings: Any) -> AsyncIterator[House]:
    """Build it and let it run."""
    told = Settings(nats_url=nats_url, data=folder, port=0, request_timeout=2, **settings)
    documents = SqliteDocuments(folder / "documents.sqlite")
    objects = FolderObjects(folder / "objects")
    await objects.open()
    owners = Service("job", told)  # by this name it declares the stream EVENTS
    payloads, jobs = Payloads(objects), Jobs(owners)
    owners.does(Parts(answers={**payloads.answers(), JOB_GET: jobs.get, **dict.fromkeys(HEALTH.values(), _healthy)}))
    edge = build(told, documents=documents, admin_token=SECRET)
    try:
        async with owners, edge, ClientSession() as session:
            yield House(edge, payloads, jobs, documents, session, told)
    finally:
        await documents.close()


async def _healthy(_: Empty) -> Health:
    return Health(status="ready")
