"""What the tests of the agent share: a scheduler and a payload service that play their part on the real bus.

Both keep what they are told. A test holds a question back with `gate`, or has it fail with `faults`.
"""

import asyncio
import contextlib
import hashlib
import json
import multiprocessing
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from gurney import clock, consume, ids
from gurney.errors import GurneyError, NotFound
from gurney.model.base import Message
from gurney.model.common import Empty, Page
from gurney.model.event import event_of
from gurney.model.job import RunRequest
from gurney.model.map import InspectMap, InspectReport
from gurney.model.payload import (
    BeginUploads,
    BegunUpload,
    BegunUploads,
    Committed,
    CommitUploads,
    FileList,
    FileView,
    SignedFile,
    SignedFiles,
    SignFiles,
)
from gurney.model.resources import Resources
from gurney.model.run import Confirm, Confirmed, Heartbeat, LogChunk, Outcome, RunEnded, RunReport, StartRun, StopRun
from gurney.objects.folder import FolderObjects
from gurney.objects.layout import path_of
from gurney.runtime import folder
from gurney.runtime.process import ProcessRuntime
from gurney.service import Parts, Service
from gurney.settings import MIB, Settings
from gurney.streams import MAP_INSPECTIONS, SCHEDULER_REPORTS, agent_runs
from gurney.subjects import (
    HEARTBEAT,
    LOG_CHUNK,
    PAYLOAD_BEGIN,
    PAYLOAD_COMMIT,
    PAYLOAD_FILES,
    PAYLOAD_SIGN,
    RUN_INSPECT,
    RUN_START,
    RUN_STOP,
    SCHEDULER_CONFIRM,
    SCHEDULER_ENDED,
    Operation,
    Subject,
)
from gurney.transfer import open_put
from services.agent.__main__ import build

SECONDS = 20.0
INPUT = "pay_00000000000000000000000000"
URN = "urn:gurney:dir:app"


def a_host(url: str, folder: Path, **more: Any) -> Settings:
    """Return the settings of one host over a folder."""
    where = {"nats_url": url, "data": folder / "data", "maps": folder / "maps", "node": "n1"}
    return Settings(**{**where, "cpu": 8, "memory": 4096 * MIB, **more})


class Gate:
    """A question that is held back: `reached` is set when it comes, `open` lets it go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    def open(self) -> None:
        self.opened.set()


class Fake:
    """A service whose questions can be counted, held back before and after they are answered, and made to fail."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.told = asyncio.Condition()
        self.faults: defaultdict[str, list[GurneyError]] = defaultdict(list)
        self._before: dict[str, Gate] = {}
        self._after: dict[str, Gate] = {}

    async def notify(self) -> None:
        async with self.told:
            self.told.notify_all()

    async def until(self, true: Callable[[], Any]) -> None:
        """Wait until something that is asked or told makes it true."""
        async with asyncio.timeout(SECONDS), self.told:
            await self.told.wait_for(true)

    def gate(self, operation: Operation[Any, Any], *, answered: bool = False) -> Gate:
        """Hold the next such question back: before it is worked on, or before its answer is sent."""
        return (self._after if answered else self._before).setdefault(operation.name, Gate())

    def answers(
        self, answers: Mapping[Operation[Any, Any], Callable[[Any], Awaitable[Message]]]
    ) -> dict[Operation[Any, Any], Callable[[Any], Awaitable[Message]]]:
        return {operation: self._guarded(operation, answer) for operation, answer in answers.items()}

    def _guarded(
        self, operation: Operation[Any, Any], answer: Callable[[Any], Awaitable[Message]]
    ) -> Callable[[Any], Awaitable[Message]]:
        async def guarded(question: Any) -> Message:
            self.asked.append(operation.name)
            await self.notify()
            await self._pass(self._before, operation)
            if self.faults[operation.name]:
                raise self.faults[operation.name].pop(0)
            told = await answer(question)
            await self._pass(self._after, operation)
            return told

        return guarded

    async def _pass(self, gates: dict[str, Gate], operation: Operation[Any, Any]) -> None:
        gate = gates.get(operation.name)
        if gate is not None:
            gate.reached.set()
            await gate.opened.wait()


class FakeScheduler(Fake):
    """Confirms what it has placed, takes in ends, sends commands."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.refused: set[str] = set()
        self.ends: dict[str, list[Outcome]] = {}
        self.reports: list[RunReport] = []
        self.inspections: dict[str, InspectReport] = {}
        self.heartbeats: list[Heartbeat] = []
        self._settings = settings
        self.service = Service("scheduler", settings).does(
            Parts(
                answers=self.answers({SCHEDULER_CONFIRM: self._confirm, SCHEDULER_ENDED: self._ended}),
                consumers={SCHEDULER_REPORTS: self._report, MAP_INSPECTIONS: self._inspected},
                reconcile=self._make_consumer,
            )
        )

    async def _make_consumer(self) -> None:
        await consume.ensure(self.service.bus, agent_runs(self._settings.node))

    async def _confirm(self, question: Confirm) -> Confirmed:
        start = question.run_id not in self.ends and question.run_id not in self.refused
        return Confirmed(start=start, message="" if start else "it was placed elsewhere")

    async def _ended(self, question: RunEnded) -> Empty:
        self.ends.setdefault(question.run_id, []).append(question.outcome)
        await self.notify()
        return Empty()

    async def _report(self, subject: str, data: bytes) -> None:
        report = RunReport.decode(data)
        assert subject == f"report.run.{self._settings.node}.{report.phase}.{report.run_id}"
        self.reports.append(report)
        await self.notify()

    async def _inspected(self, subject: str, data: bytes) -> None:
        report = InspectReport.decode(data)
        assert subject == f"report.inspect.{self._settings.node}.{report.phase}.{report.id}"
        self.inspections[report.id] = report
        await self.notify()

    async def listen(self) -> None:
        async def heard(message: Any) -> None:
            self.heartbeats.append(Heartbeat.decode(message.data))
            await self.notify()

        await self.service.bus.subscribe(HEARTBEAT.of(node_id=self._settings.node), heard)

    async def outcome(self, run_id: str) -> Outcome:
        await self.until(lambda: run_id in self.ends)
        return self.ends[run_id][-1]

    async def send(self, subject: Subject, message: Message, **tokens: str) -> None:
        name = subject.of(node_id=self._settings.node, **tokens)
        event = event_of(name, message, id=ids.new_id("evt"), source="scheduler", at=clock.now())
        await self.service.bus.publish_events([event])


class FakePayload(Fake):
    """One input and what runs uploaded, over a real store."""

    def __init__(self, settings: Settings, objects: FolderObjects) -> None:
        super().__init__()
        self._objects = objects
        self.page = 1000
        self.files: dict[str, tuple[str, FileView]] = {}
        #: Run id -> path -> what was committed.
        self.results: defaultdict[str, dict[str, FileView]] = defaultdict(dict)
        self.logs: defaultdict[str, dict[str, FileView]] = defaultdict(dict)
        self.keys: dict[tuple[str, str], str] = {}
        self.root = settings.data / "objects"
        self.service = Service("payload", settings).does(
            Parts(
                answers=self.answers(
                    {
                        PAYLOAD_FILES: self._files,
                        PAYLOAD_SIGN: self._sign,
                        PAYLOAD_BEGIN: self._begin,
                        PAYLOAD_COMMIT: self._commit,
                    }
                )
            )
        )

    async def add(self, path: str, data: bytes = b"") -> None:
        """Put a file into the input."""
        key = f"{INPUT}/{ids.new_id('upl')}"
        async with open_put(self._objects.sign_put(key)) as put:
            await put.write(data)
            await put.commit()
        digest = hashlib.sha256(data).hexdigest()
        self.files[path] = (key, FileView(path=path, size=len(data), sha256=digest, created_at=clock.now()))

    def content(self, owner: str, path: str) -> bytes:
        """Return the bytes of what a run uploaded."""
        return path_of(self.root, self.keys[owner, path]).read_bytes()

    async def _files(self, question: FileList) -> Page[FileView]:
        assert question.payload == INPUT
        assert question.token
        at = int(question.cursor or 0)
        views = [view for _, view in self.files.values()][at : at + self.page]
        more = at + self.page < len(self.files)
        return Page(items=tuple(views), next_cursor=str(at + self.page) if more else None)

    async def _sign(self, question: SignFiles) -> SignedFiles:
        found = [self.files[path] for path in question.paths]
        return SignedFiles(
            items=tuple(SignedFile(file=view, url=self._objects.sign_get(key)) for key, view in found),
        )

    async def _begin(self, question: BeginUploads) -> BegunUploads:
        run_id = (question.token or "").partition(".")[0]
        job_id, attempt = ids.split_run_id(run_id)
        if question.owner == "log":
            assert question.paths == (f"{attempt}.log",)
        owner = job_id if question.owner == "log" else f"draft_{run_id}"
        items = [(path, f"{owner}/{ids.new_id('upl')}") for path in question.paths]
        return BegunUploads(
            owner=owner,
            items=tuple(BegunUpload(path=path, key=key, url=self._objects.sign_put(key)) for path, key in items),
        )

    async def _commit(self, question: CommitUploads) -> Committed:
        run_id = (question.token or "").partition(".")[0]
        kept = (self.results if question.owner.startswith("draft_") else self.logs)[run_id]
        for item in question.items:
            if not item.path.endswith("/") and await self._objects.stat(item.key) is None:
                raise NotFound(item.path)
            kept[item.path] = FileView(path=item.path, size=item.size, sha256=item.sha256, created_at=clock.now())
            self.keys[run_id, item.path] = item.key
        return Committed(items=())


class House:
    """One agent with its runtime and its neighbours."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.objects = FolderObjects(settings.data / "objects")
        self.scheduler = FakeScheduler(settings)
        self.payload = FakePayload(settings, self.objects)
        self.log: defaultdict[str, list[LogChunk]] = defaultdict(list)
        self._agent: contextlib.AsyncExitStack = contextlib.AsyncExitStack()
        self.app = Path(settings.maps or ".") / "app"
        self.app.mkdir(parents=True)
        (self.app / "app.json").write_text(json.dumps({"command": "sh"}))
        (self.app / "pkg.json").write_text("{}")
        self.digest = ""

    @property
    def starts(self) -> Path:
        """The file to which every run of `script` appends a line."""
        return self.settings.data / "starts"

    def counted(self) -> list[str]:
        """Return the id of every run that was started, as often as it was."""
        return self.starts.read_text().split() if self.starts.exists() else []

    async def agent_starts(self) -> Service:
        self._agent = contextlib.AsyncExitStack()
        runtime = ProcessRuntime(self.settings.data, self.settings.maps, grace_s=0.2, idle_s=0.1)
        service = build(self.settings, runtimes=[runtime])
        return await self._agent.enter_async_context(service)

    async def agent_ends(self) -> None:
        stack, self._agent = self._agent, contextlib.AsyncExitStack()
        await stack.aclose()

    def request(self, script: str, **changes: Any) -> RunRequest:
        count = f'echo "$GURNEY_RUN_ID" >> {self.starts}\nIN=$HOLOSCAN_INPUT_PATH OUT=$HOLOSCAN_OUTPUT_PATH\n'
        base = RunRequest(
            urn=URN,
            digest=self.digest,
            generation="holoscan",
            command=("sh", "-c", count + script),
            input_path="input/",
            output_path="output/",
            payload=INPUT,
            resources=Resources(cpu=0.01, memory=64 << 20),
            timeout_s=60,
        )
        return base.but(**changes)

    def run(self, script: str, *, epoch: int = 1, **changes: Any) -> StartRun:
        """Return a start of one attempt that runs a shell script."""
        job_id = ids.new_id("job")
        run_id = ids.run_id(job_id, 1)
        return StartRun(
            run_id=run_id,
            job_id=job_id,
            attempt=1,
            node=self.settings.node,
            epoch=epoch,
            request=self.request(script, **changes),
            token=f"{run_id}.{INPUT}.signature",
        )

    async def start(self, start: StartRun) -> StartRun:
        await self.scheduler.send(RUN_START, start, run_id=start.run_id)
        return start

    async def stop(self, run_id: str, epoch: int = 1) -> None:
        message = StopRun(run_id=run_id, node=self.settings.node, epoch=epoch, reason="canceled")
        await self.scheduler.send(RUN_STOP, message, run_id=run_id)

    async def inspect(self, urn: str) -> InspectReport:
        asked = InspectMap(id=ids.new_id("ins"), map_id=ids.new_id("map"), urn=urn)
        await self.scheduler.send(RUN_INSPECT, asked, inspection_id=asked.id)
        await self.scheduler.until(lambda: asked.id in self.scheduler.inspections)
        return self.scheduler.inspections[asked.id]

    async def outcome(self, start: StartRun) -> Outcome:
        return await self.scheduler.outcome(start.run_id)

    async def finish(self, script: str, **changes: Any) -> tuple[str, Outcome]:
        """Run a script to its end; returns run id and outcome."""
        start = await self.start(self.run(script, **changes))
        return start.run_id, await self.outcome(start)

    async def follow_log(self) -> None:
        async def heard(message: Any) -> None:
            chunk = LogChunk.decode(message.data)
            self.log[chunk.run_id].append(chunk)
            await self.scheduler.notify()

        subject = LOG_CHUNK.of(node_id=self.settings.node, run_id="*")
        await self.scheduler.service.bus.subscribe(subject, heard)

    def left(self) -> list[str]:
        """Return what there is of runs on disk."""
        places = [self.settings.data / "agent" / "journal", self.settings.data / "agent" / "work"]
        places += [self.settings.data / "runtime" / "runs", self.settings.data / "runtime" / "trash"]
        return [str(path) for place in places if place.is_dir() for path in place.iterdir()]

    async def is_clean(self) -> None:
        """Wait until nothing is left of any run."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SECONDS):
                while self.left():  # nobody tells of the end of the clearing-up
                    await asyncio.sleep(0.02)
        assert self.left() == []


@contextlib.asynccontextmanager
async def neighbours(settings: Settings) -> AsyncIterator[House]:
    """The house without its agent."""
    house = House(settings)
    await house.objects.open()
    house.digest, _ = await asyncio.to_thread(folder.pin, house.app, settings.data / "maps")
    async with house.scheduler.service, house.payload.service:
        await house.scheduler.listen()
        try:
            yield house
        finally:
            await house.agent_ends()


class AgentProcess:
    """The agent in a process of its own, which can be killed in the hardest way."""

    #: A resident process that has imported everything and forks: a start takes milliseconds.
    _context = multiprocessing.get_context("forkserver")
    _context.set_forkserver_preload(["tests.service.agent_house"])

    def __init__(self, settings: Settings) -> None:
        self._process = self._context.Process(target=_serve, args=(settings.model_dump(mode="json"),), daemon=True)

    async def start(self) -> None:
        await asyncio.to_thread(self._process.start)

    async def kill(self) -> None:
        self._process.kill()
        await asyncio.to_thread(self._process.join)


def _serve(told: dict[str, Any]) -> None:
    settings = Settings.model_validate(told)
    runtime = ProcessRuntime(settings.data, settings.maps, grace_s=0.2, idle_s=0.1)

    async def serve() -> None:
        async with build(settings, runtimes=[runtime]):
            await asyncio.Event().wait()

    asyncio.run(serve())
