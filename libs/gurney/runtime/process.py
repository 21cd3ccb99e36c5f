"""The process runtime: folder MAPs (`urn:gurney:dir:<name>`) as supervised processes of this host, without isolation.

Files, all below the data folder:
- `maps/<hexadecimal digest>/` read-only copies of the MAPs (`folder.py`)
- `runtime/` (0700): the supervisor's socket, lock, pid and log, and `runs/<run_id>/` (`supervisor/records.py`)

The runs belong to the supervisor (`supervisor/`), one resident process per data folder that outlives us. Linux only.
"""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gurney.errors import Conflict, GurneyError, ImageChanged, ImageUnavailable, Invalid, Unavailable
from gurney.runtime import folder
from gurney.runtime.copies import Copies
from gurney.runtime.environment import process_environment
from gurney.runtime.link import SupervisorLink
from gurney.runtime.port import Cause, End, Inspection, Observed, Progress, RunSpec, silent

_RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def supported() -> bool:
    """Tell whether this host can run it."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open")


class ProcessRuntime:
    """Implements the port `Runtime`. `grace_s` is what a run gets between SIGTERM and SIGKILL at its timeout."""

    name = "process"
    kinds: tuple[str, ...] = (folder.URN_PREFIX,)
    #: It has no part that could be away: the supervisor is started where there is none.
    fault: str | None = None

    def __init__(
        self,
        data_dir: Path,
        maps_dir: Path | None,
        *,
        grace_s: float = 10.0,
        idle_s: float = 5.0,
        answer_s: float = 30.0,
    ) -> None:
        """`idle_s`: how long the supervisor stays with neither run nor client; `answer_s`: how long it may take."""
        data_dir = data_dir.absolute()
        self._maps_dir = maps_dir
        self._copies = Copies(data_dir / "maps")
        self._folder = data_dir / "runtime"
        self._grace_s = grace_s
        self._link = SupervisorLink(self._folder, self._hear, idle_s=idle_s, answer_s=answer_s)
        #: Runs whose end is still to be told.
        self._live: set[str] = set()
        self._listeners: set[asyncio.Queue[Observed | None]] = set()
        self._opened = False

    async def open(self) -> None:
        if not supported():
            raise Unavailable("The process runtime needs Linux 5.3 or later")
        await asyncio.to_thread(self._prepare)
        await self._link.open()
        self._opened = True

    async def close(self) -> None:
        self._opened = False
        await self._link.close()
        for queue in self._listeners:
            queue.put_nowait(None)

    async def inspect(self, urn: str, *, described: bool = False, progress: Progress = silent) -> Inspection:
        del described, progress  # a folder is read whatever it holds, and in a moment
        digest, manifests = await asyncio.to_thread(self._pin, urn)
        return Inspection(digest, manifests)

    async def available(self, urn: str, digest: str) -> None:
        if await asyncio.to_thread(self._copies.has, digest):
            return
        try:
            found = (await self.inspect(urn)).digest
        except GurneyError as error:
            raise ImageUnavailable(f"This host has no copy of the MAP, and its folder is gone: {error}") from error
        if found != digest:
            raise ImageChanged("This host has no copy of the MAP, and its folder has changed since it was registered")

    async def held(self) -> list[str]:
        return await self.copies()

    async def copies(self) -> list[str]:
        return await asyncio.to_thread(self._copies.digests)

    async def let_go(self, digest: str, idle_since: float) -> bool:
        return await asyncio.to_thread(self._copies.let_go, digest, idle_since)

    async def start(self, spec: RunSpec) -> None:
        run_folder = self._run_folder(spec.run_id)
        copy = str(self._copies.path(spec.digest))
        environment = process_environment(
            spec,
            folder=copy,
            python_dir=str(Path(sys.executable).parent),
            tmp=str(run_folder / "tmp"),
            inherited=os.environ,
        )
        self._live.add(spec.run_id)
        told = await self._link.ask(
            "start",
            run_id=spec.run_id,
            argv=list(spec.command),
            env=environment,
            cwd=copy,
            cpu=spec.cpu,
            memory=spec.memory,
            timeout_s=spec.timeout_s,
            lease_until=spec.lease_until,
            grace_s=self._grace_s,
        )
        if told["end"] is not None:
            self._live.discard(spec.run_id)

    async def stop(self, run_id: str, grace_s: float = 10.0) -> None:
        self._run_folder(run_id)
        await self._link.ask("stop", run_id=run_id, grace_s=grace_s)

    async def lease(self, run_ids: Collection[str], until: float) -> None:
        await self._link.ask("lease", run_ids=list(run_ids), until=until)

    async def owners(self, pids: Collection[int]) -> Mapping[int, str]:
        told = await self._link.ask("members")
        found = {pid: run_id for run_id, members in told["members"] for pid in members}
        return {pid: found[pid] for pid in pids if pid in found}

    async def may_open_gpus(self, run_id: str) -> bool | None:
        del run_id
        return True  # as a process of the host, from which nothing is kept

    async def runs(self) -> list[Observed]:
        told = await self._link.ask("list")
        return [_observed(run_id, end) for run_id, end in told["runs"]]

    def ends(self) -> AsyncIterator[Observed]:
        """Yield the ends from this call on; finishes when the runtime is closed."""
        queue: asyncio.Queue[Observed | None] = asyncio.Queue()
        self._listeners.add(queue)
        if not self._opened:
            queue.put_nowait(None)
        return self._listen(queue)

    def log_path(self, run_id: str) -> Path:
        return self._run_folder(run_id) / "log"

    async def forget(self, run_id: str) -> None:
        self._run_folder(run_id)
        told = await self._link.ask("forget", run_id=run_id)
        if not told["forgotten"]:
            raise Conflict(f"The run {run_id} has not ended")
        self._live.discard(run_id)
        await asyncio.to_thread(self._empty_trash, f"{run_id}.*")  # others remove theirs

    # What the supervisor tells

    def _hear(self, told: dict[str, Any]) -> None:
        if "ended" in told:
            self._tell(_observed(told["ended"], told["end"]))
            return
        # A supervisor to which we have just connected: what ended while none was there is told now.
        self._note([_observed(run_id, end) for run_id, end in told["runs"]])

    def _note(self, observed: list[Observed]) -> None:
        for each in observed:
            if each.end is None:
                self._live.add(each.run_id)
            elif each.run_id in self._live:
                self._tell(each)

    def _tell(self, observed: Observed) -> None:
        self._live.discard(observed.run_id)
        for queue in self._listeners:
            queue.put_nowait(observed)

    async def _listen(self, queue: asyncio.Queue[Observed | None]) -> AsyncIterator[Observed]:
        try:
            while (observed := await queue.get()) is not None:
                yield observed
        finally:
            self._listeners.discard(queue)

    # Files; blocking where called in a thread

    def _run_folder(self, run_id: str) -> Path:
        if not _RUN_ID.fullmatch(run_id):
            raise Invalid.field("run_id", f"{run_id!r} is not a run id")
        return self._folder / "runs" / run_id

    def _prepare(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        self._copies.open()
        self._empty_trash()

    def _empty_trash(self, pattern: str = "*") -> None:
        for left in (self._folder / "trash").glob(pattern):
            folder.remove_tree(left)

    def _pin(self, urn: str) -> tuple[str, dict[str, bytes]]:
        return self._copies.pin(folder.resolve(self._maps_dir, urn))


def _observed(run_id: str, end: dict[str, Any] | None) -> Observed:
    return Observed(run_id, None if end is None else _end(end))


def _end(told: dict[str, Any]) -> End:
    return End(
        cause=Cause(told.get("cause", Cause.LOST)),
        exit_code=told.get("exit_code"),
        started_at=_at(told.get("started_at")),
        stopped_at=_at(told.get("stopped_at")),
        duration_s=told.get("duration_s"),
        peak_memory=told.get("peak_memory"),
        cpu_s=told.get("cpu_s"),
        message=told.get("message", ""),
    )


def _at(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
