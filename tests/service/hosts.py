"""Several hosts in one process: real agents over real connections that can be cut, one scheduler, a payload service."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from gurney.documents.sqlite import SqliteDocuments
from gurney.model.job import PlacementRequest
from gurney.model.resources import Resources
from gurney.model.run import Lifecycle
from gurney.objects.folder import FolderObjects
from gurney.runtime import folder
from gurney.runtime.process import ProcessRuntime
from gurney.runtime.supervisor import procfs
from gurney.service import Service
from gurney.settings import Settings
from services.agent.__main__ import build as build_agent
from services.agent.supervisor import Supervisor
from tests.service.agent_house import INPUT, URN, FakePayload
from tests.service.scheduler_world import World, a_request


class Cable:
    """What lies between one host and the nats-server; cut, nothing gets through and nobody is told."""

    def __init__(self, url: str) -> None:
        host, _, port = url.rpartition("//")[2].rpartition(":")
        self._to = (host, int(port))
        self._whole = asyncio.Event()
        self._whole.set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._server:
            self._server.close()
        for pump in list(self._pumps):
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._whole.wait()
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(*self._to)
            for source, sink in ((reader, far_writer), (far_reader, writer)):
                pump = asyncio.create_task(self._pump(source, sink))
                self._pumps.add(pump)
                pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                await self._whole.wait()
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()


class Host:
    """One agent with its data folder and its cable."""

    def __init__(self, settings: Settings, cable: Cable) -> None:
        self.settings = settings
        self.cable = cable
        self._agent = contextlib.AsyncExitStack()
        self.service: Service

    @property
    def name(self) -> str:
        return self.settings.node

    async def starts(self) -> Service:
        runtime = ProcessRuntime(self.settings.data, self.settings.maps, grace_s=0.2, idle_s=0.1)
        self.service = build_agent(self.settings, runtimes=[runtime])
        return await self._agent.enter_async_context(self.service)

    @property
    def supervisor(self) -> Supervisor:
        """What takes starts, of the agent that runs now."""
        return next(each for each in self.service._parts.resources if isinstance(each, Supervisor))

    async def ends(self) -> None:
        stack, self._agent = self._agent, contextlib.AsyncExitStack()
        await stack.aclose()

    def journal(self) -> list[str]:
        return sorted(path.stem for path in (self.settings.data / "agent" / "journal").iterdir())


class Hosts(World):
    """The world of the scheduler, with real agents in it. They start after the scheduler, as they like."""

    def __init__(self, settings: Settings, documents: SqliteDocuments) -> None:
        super().__init__(settings, documents)
        self.objects = FolderObjects(settings.data / "objects")
        self.payload = FakePayload(settings, self.objects)
        self.hosts: dict[str, Host] = {}
        self.digest = ""

    async def __aenter__(self) -> Self:
        app = self._maps("shared") / "app"
        self.digest, _ = await asyncio.to_thread(folder.pin, app, self.settings.data / "pinned")
        await self.objects.open()
        await super().__aenter__()
        await self._stack.enter_async_context(self.payload.service)
        return self

    async def __aexit__(self, *exc: object) -> None:
        for host in self.hosts.values():
            host.cable.mend()
            await host.ends()
        await super().__aexit__(*exc)

    def at_the_end(self, call: Callable[..., object], *arguments: object) -> None:
        self._stack.callback(call, *arguments)

    def _maps(self, name: str, command: str = "sh") -> Path:
        app = self.settings.data / name / "app"
        if not app.exists():
            app.mkdir(parents=True)
            (app / "app.json").write_text(json.dumps({"command": command}))
            (app / "pkg.json").write_text("{}")
        return app.parent

    async def host(self, name: str, *, disk: str = "", maps: str = "shared", **more: Any) -> Host:
        """Prepare a host; `disk`: its data folder, `maps`: its folder of MAPs."""
        cable = await self._stack.enter_async_context(Cable(self.settings.nats_url))
        changes = {
            "nats_url": cable.url,
            "node": name,
            "data": self.settings.data / (disk or name),
            "maps": self._maps(maps, maps),
            "cpu": 1.0,
            "memory": 1 << 30,
        } | more
        host = Host(self.settings.model_copy(update=changes), cable)
        self.hosts[disk or name] = host
        return host

    async def joined(self, name: str, **more: Any) -> Host:
        """Start a host and wait until its node has joined."""
        host = await self.host(name, **more)
        await host.starts()
        assert (await self.next(self.nodes)).id == name
        return host

    async def run(self, script: str, *, attempt: int = 1, after: PlacementRequest | None = None) -> PlacementRequest:
        """Request a job that runs a script of a shell; or its next attempt."""
        count = f'echo "$GURNEY_RUN_ID" >> {self.starts_file}\nOUT=$HOLOSCAN_OUTPUT_PATH\n'
        request = a_request()
        run = request.request.but(
            urn=URN,
            digest=self.digest,
            generation="holoscan",
            command=("sh", "-c", count + script),
            payload=INPUT,
            resources=Resources(cpu=1.0, memory=64 << 20),
            timeout_s=600,
        )
        request = after.but(attempt=attempt) if after else request.but(request=run)
        return await self.request(request)

    @property
    def starts_file(self) -> Path:
        return self.settings.data / "starts"

    def counted(self) -> list[str]:
        """Return the id of every run that was started, as often as it was."""
        return self.starts_file.read_text().split() if self.starts_file.exists() else []

    async def told(self, event: str, request: PlacementRequest | None = None, attempt: int = 1) -> Lifecycle:
        """Return the next such event of a job's attempt; others are passed over."""
        while True:
            heard = await self.next(self.lifecycle)
            if heard.event == event and (request is None or (heard.job_id, heard.attempt) == (request.job_id, attempt)):
                return heard

    async def runs(self, request: PlacementRequest, attempt: int = 1) -> Host:
        """Wait until an attempt runs; returns where."""
        started = await self.told("started", request, attempt)
        return self.hosts[started.node or ""]


async def processes(run_id: str) -> list[int]:
    """Return all processes of this machine that belong to a run."""
    return await asyncio.to_thread(_processes, f"GURNEY_RUN_ID={run_id}".encode())


def _processes(assignment: bytes) -> list[int]:
    return [pid for pid in procfs.pids() if procfs.has_variable(pid, assignment) and procfs.ticks(pid)]
