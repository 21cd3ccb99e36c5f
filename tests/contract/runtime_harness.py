"""What the contract suite needs of a runtime beyond its port: applications, signals from them, crashes, an orderly end.

Applications are scripts of a POSIX shell that use busybox's tools only, so that every runtime can run them. They tell
and wait through named pipes in their output folder: `echo > "$OUT/ready"` and `read _ < "$OUT/go"`.
"""

import asyncio
import contextlib
import json
import os
import select
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from gurney.runtime.port import End, Observed, RunSpec, Runtime
from gurney.runtime.process import ProcessRuntime
from gurney.runtime.supervisor import procfs

GRACE_S = 0.2
SECONDS = 30.0
MIB = 1 << 20


class Harness(Protocol):
    """One runtime on one host, with one MAP."""

    runtime: Runtime
    urn: str
    missing_urn: str
    base: Path
    #: What manifests say of the paths; `command` and the rest are the same for all.
    input_path: str
    output_path: str
    #: What the runtime can do that not all can: keep standard output and error in the order in which they were written
    #: to each other; see the peak of memory of a run that is shorter than a second; give GPUs that are not there.
    keeps_order_of_streams: bool
    sees_short_peaks: bool
    has_gpus: bool
    #: How much longer than a process a start takes.
    pace: float

    async def open(self) -> None: ...

    async def reopen(self) -> None:
        """Close the runtime and open a fresh one, as a server does that is started again."""

    async def crash(self) -> None:
        """Kill what the runtime keeps resident, in the hardest way, and wait until it is gone."""

    async def finish(self) -> None:
        """End everything that was started."""


class ProcessHarness:
    """The process runtime with a folder MAP `app`."""

    urn = "urn:gurney:dir:app"
    missing_urn = "urn:gurney:dir:nothing"
    input_path, output_path = "input/", "output/"
    keeps_order_of_streams = True
    sees_short_peaks = True
    has_gpus = True
    pace = 1.0

    def __init__(self, base: Path) -> None:
        self.base = base
        self.data = base / "data"
        self.maps = base / "maps"
        app = self.maps / "app"
        app.mkdir(parents=True)
        (app / "app.json").write_text(json.dumps({"command": "./run"}))
        (app / "pkg.json").write_text("{}")
        (app / "plain").write_text("echo not executable\n")
        self.runtime: Runtime = self.make()

    def make(self) -> ProcessRuntime:
        return ProcessRuntime(self.data, self.maps, grace_s=GRACE_S, idle_s=0.1)

    async def open(self) -> None:
        await self.runtime.open()

    async def reopen(self) -> None:
        await self.runtime.close()
        self.runtime = self.make()
        await self.runtime.open()

    def supervisor(self) -> int:
        """Return the pid of the resident process, 0 where there is none."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            pid = int((self.data / "runtime" / "supervisor.pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            return pid if os.fsencode(self.data) in command else 0
        return 0

    async def crash(self) -> None:
        await kill(self.supervisor(), signal.SIGKILL)

    def processes(self, run_id: str) -> list[int]:
        """Return all processes of the host that carry the run's id."""
        return processes_of(run_id)

    async def finish(self) -> None:
        ends = self.runtime.ends()
        live = {each.run_id for each in await self.runtime.runs() if each.end is None}
        for run_id in live:
            await self.runtime.stop(run_id, 0.0)
        while live:
            live.discard((await asyncio.wait_for(anext(ends), SECONDS)).run_id)
        pid = self.supervisor()
        await self.runtime.close()
        await gone(pid)


def processes_of(run_id: str) -> list[int]:
    """Return all processes of the host that carry a run's id. Blocks."""
    return [pid for pid in procfs.pids() if procfs.has_variable(pid, b"GURNEY_RUN_ID=" + run_id.encode())]


async def gone(pid: int) -> None:
    """Wait until a process has ended."""
    with contextlib.suppress(ProcessLookupError):
        if pid:
            await readable(os.pidfd_open(pid))


async def kill(pid: int, number: int) -> None:
    """Signal one process of ours and wait for its end."""
    assert pid
    os.kill(pid, number)
    await gone(pid)


async def readable(fd: int) -> None:
    """Wait until there is something to read (or the end), then close it."""
    loop = asyncio.get_running_loop()
    heard = asyncio.Event()
    loop.add_reader(fd, heard.set)
    try:
        await asyncio.wait_for(heard.wait(), SECONDS)
    finally:
        loop.remove_reader(fd)
        os.close(fd)


class App:
    """One run of a script: its specification, its pipes, its end."""

    def __init__(self, harness: Harness, digest: str, script: str | tuple[str, ...], run_id: str) -> None:
        self.harness = harness
        folder = harness.base / "work" / run_id
        self.input, self.output = folder / "in", folder / "out"
        for each in (self.input, self.output):
            each.mkdir(parents=True)
        self._pipes: dict[str, int] = {}
        self.spec = RunSpec(
            run_id=run_id,
            job_id="job_1",
            attempt=1,
            node="n1",
            urn=harness.urn,
            digest=digest,
            generation="holoscan",
            command=("sh", "-c", f"OUT=$HOLOSCAN_OUTPUT_PATH\n{script}") if isinstance(script, str) else script,
            environment={},
            working_directory=None,
            input_path=harness.input_path,
            output_path=harness.output_path,
            input_dir=self.input,
            output_dir=self.output,
            cpu=0.5,
            memory=512 * MIB,
        )

    def pipe(self, *names: str) -> None:
        """Make named pipes before the start; the reading and writing ends stay open on our side."""
        for name in names:
            os.mkfifo(self.output / name)
            self._pipes[name] = os.open(self.output / name, os.O_RDWR | os.O_NONBLOCK)

    async def told(self, name: str) -> None:
        """Wait until the application wrote to the pipe."""
        await readable(os.dup(self._pipes[name]))
        os.read(self._pipes[name], 4096)

    def tell(self, name: str) -> None:
        """Let an application go on that reads the pipe."""
        os.write(self._pipes[name], b"\n")

    def held(self, name: str) -> bool:
        """Tell whether any process still has the pipe open for writing; to be asked once, at the end."""
        os.close(self._pipes.pop(name))
        fd = os.open(self.output / name, os.O_RDONLY | os.O_NONBLOCK)
        try:
            # A pipe that nobody else has open and that was not written to is not at its end but plainly empty, so the
            # writer that we add and take away makes the end visible.
            os.close(os.open(self.output / name, os.O_WRONLY | os.O_NONBLOCK))
            ready = select.poll()
            ready.register(fd, select.POLLIN)
            return not any(events & select.POLLHUP for _, events in ready.poll(0))
        finally:
            os.close(fd)

    def close(self) -> None:
        while self._pipes:
            os.close(self._pipes.popitem()[1])

    def log(self) -> str:
        return self.harness.runtime.log_path(self.spec.run_id).read_text()

    async def observed(self) -> Observed | None:
        """Return how the runtime lists the run now."""
        found = [each for each in await self.harness.runtime.runs() if each.run_id == self.spec.run_id]
        return found[0] if found else None

    async def run(self) -> End:
        """Start, and wait for the end."""
        ends = self.harness.runtime.ends()
        await self.harness.runtime.start(self.spec)
        return await self.end(ends)

    async def end(self, ends: AsyncIterator[Observed] | None = None) -> End:
        """Wait for the end: already there, or told."""
        ends = ends or self.harness.runtime.ends()
        observed = await self.observed()
        while observed is None or observed.run_id != self.spec.run_id or observed.end is None:
            observed = await asyncio.wait_for(anext(ends), SECONDS)
        return observed.end
