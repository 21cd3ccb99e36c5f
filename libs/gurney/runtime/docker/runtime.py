"""The Docker runtime, as the port `Runtime` has it.

A run is a container named after it and a folder (`records.py`). The containers belong to the daemon and outlive us;
after a restart, ours or the daemon's, all is taken stock of: what runs is adopted, what ended is told, what is gone is
lost, and containers of ours without a mark are removed. While the daemon is away, runs that began count as running.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gurney import clock
from gurney.errors import Conflict, GurneyError, ImageUnavailable, Invalid, Unavailable
from gurney.runtime.docker import container, ending, groups, probe
from gurney.runtime.docker.begin import Begun, NoNamespaceError, begin
from gurney.runtime.docker.cache import Cache
from gurney.runtime.docker.daemon import Daemon, Refused
from gurney.runtime.docker.host import Host
from gurney.runtime.docker.house import House
from gurney.runtime.docker.images import Images
from gurney.runtime.docker.leases import Leases
from gurney.runtime.docker.live import LiveRun
from gurney.runtime.docker.logs import LogPump
from gurney.runtime.docker.outside import Outside
from gurney.runtime.docker.pause import Pauses
from gurney.runtime.docker.reading import Readers
from gurney.runtime.docker.records import Records
from gurney.runtime.docker.reference import URN_PREFIX
from gurney.runtime.docker.registries import Registries
from gurney.runtime.docker.runs import Runs
from gurney.runtime.docker.samples import Sampler
from gurney.runtime.docker.shares import Owner, hand_over
from gurney.runtime.docker.watch import Watch
from gurney.runtime.port import Cause, Inspection, Observed, Progress, RunSpec, silent

_RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_ABSENT = 404
#: Starts at once, however many cores there are.
_STARTS = 16


class DockerRuntime:
    """Implements the port `Runtime`. `grace_s` is what a run gets between SIGTERM and SIGKILL at its timeout."""

    name = "docker"
    kinds: tuple[str, ...] = (URN_PREFIX,)

    def __init__(
        self,
        data_dir: Path,
        *,
        node: str,
        url: str | None = None,
        grace_s: float = 10.0,
        registry_config: Path | None = None,
        image_cache: int = 0,
    ) -> None:
        """`registry_config`: a Docker client configuration; `image_cache`: bytes of pulled images that stay, 0: all."""
        data_dir = data_dir.absolute()
        folder = data_dir / "docker"
        daemon, house = Daemon(url), House(node, data_dir)
        self._daemon = daemon
        self._host = Host(daemon, house, Records(folder), LogPump(), grace_s)
        self._cache = Cache(daemon, folder, image_cache)
        readers = Readers(house)
        self._images = Images(daemon, readers, Registries(registry_config), self._cache)
        self._pauses = Pauses(daemon, house)
        self._outside = Outside(daemon, house)
        self._leases = Leases(daemon, folder)
        self._runs = Runs(self._host, self._pauses, self._leases, readers)
        self._watch = Watch(daemon, house.filter, self._runs.take_stock, self._runs.hear)
        self._sampler = Sampler(daemon, lambda: list(self._runs.live.values()))
        self._owner = Owner.here()
        # A start keeps a core busy: more at once only take each other's time, and more namespaces than runs need.
        self._lanes = asyncio.Semaphore(min(2 * (os.cpu_count() or 1), _STARTS))
        self._is_open = False

    @property
    def fault(self) -> str | None:
        """Why it can begin no run now; None: it can."""
        return None if self._watch.is_up else f"the Docker daemon at {self._daemon.url} does not answer"

    async def open(self) -> None:
        """Find our runs; a daemon that is away is waited for in the background."""
        kept = await asyncio.to_thread(self._host.records.open)
        live = [run_id for run_id, each in kept.items() if each.end is None]
        self._runs.recall(await asyncio.to_thread(self._leases.open, live), kept)
        await asyncio.to_thread(self._cache.open)
        self._is_open = True
        self._host.pump.open()
        self._runs.ends.open()
        await self._watch.open()
        self._runs.task(self._sampler.run())
        self._runs.task(self._cache.run())

    async def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        await self._watch.close()
        await self._runs.close()
        await asyncio.to_thread(self._host.pump.close)
        self._daemon.close()

    async def inspect(self, urn: str, *, described: bool = False, progress: Progress = silent) -> Inspection:
        return await self._images.inspect(urn, described=described, progress=progress)

    async def available(self, urn: str, digest: str) -> None:
        await self._images.promise(urn, digest)

    async def held(self) -> list[str]:
        return await self._images.held()

    async def copies(self) -> Collection[str]:
        return ()  # the daemon has the images, and the cache bounds those that we pulled

    async def let_go(self, digest: str, idle_since: float) -> bool:
        del digest, idle_since
        return False

    async def start(self, spec: RunSpec) -> None:
        run_id = _check(spec.run_id)
        if run_id in self._runs.live or run_id in self._runs.ended:
            return
        starting = self._runs.starting.get(run_id)
        if starting is None:
            starting = self._runs.starting[run_id] = asyncio.create_task(self._start(spec))
            starting.add_done_callback(lambda _: self._runs.starting.pop(run_id, None))
        await asyncio.shield(starting)

    async def stop(self, run_id: str, grace_s: float = 10.0) -> None:
        if (starting := self._runs.starting.get(_check(run_id))) is not None:
            with suppress(GurneyError):
                await asyncio.shield(starting)
        if (run := self._runs.live.get(run_id)) is not None:
            run.end_by(Cause.STOPPED, grace_s)
            await run.keep_ending()

    async def lease(self, run_ids: Collection[str], until: float) -> None:
        found = [self._runs.live[run_id] for run_id in run_ids if run_id in self._runs.live]
        runs = [run for run in found if not run.has_lapsed]
        given = {run.run_id: max(until, run.lease_until or until) for run in runs}
        # We never believe in a longer lease than the watchdog, which cannot be told on a full disk.
        for run in runs:
            if run.lease_until is None:
                run.lease(until)
        if given:
            await self._leases.give(given)
        for run in runs:
            run.lease(until)

    async def owners(self, pids: Collection[int]) -> Mapping[int, str]:
        runs = {run.mark.container: run_id for run_id, run in self._runs.live.items()}
        found = await asyncio.to_thread(lambda: {pid: groups.container_of(pid, runs) for pid in pids})
        return {pid: runs[container] for pid, container in found.items() if container is not None}

    async def may_open_gpus(self, run_id: str) -> bool | None:
        run = self._runs.live.get(run_id)
        if run is None or not run.has_room(probe.ROOM):
            return None
        return await probe.may_open(self._daemon, run.mark.container)

    async def runs(self) -> list[Observed]:
        live = [Observed(run_id, None) for run_id in self._runs.live]
        return live + [Observed(run_id, end) for run_id, end in self._runs.ended.items()]

    def ends(self) -> AsyncIterator[Observed]:
        """Yield the ends from this call on; finishes when the runtime is closed."""
        return self._runs.ends.listen()

    def log_path(self, run_id: str) -> Path:
        return self._host.records.log(_check(run_id))

    async def forget(self, run_id: str) -> None:
        if _check(run_id) in self._runs.live or run_id in self._runs.starting:
            raise Conflict(f"The run {run_id} has not ended")
        if self._runs.ended.pop(run_id, None) is not None:
            await self._daemon.aside(lambda: self._host.records.discard(run_id))
            self._runs.removals.soon(run_id)

    # --- the beginning ---

    async def _start(self, spec: RunSpec) -> None:
        if self.fault is not None:
            raise Unavailable(self.fault)
        await self._runs.removals.done(spec.run_id)
        try:
            if not spec.command:
                raise Invalid("the command is empty")
            async with self._images.brought(spec.urn, spec.digest) as image:
                if spec.lease_until is not None and clock.monotonic() >= spec.lease_until:
                    await self._runs.has_ended(spec.run_id, ending.lapsed())
                else:
                    async with self._lanes:
                        await self._begin(spec, image)
        except Invalid as error:
            await self._runs.has_ended(spec.run_id, ending.not_started(str(error)))

    async def _begin(self, spec: RunSpec, image: container.Image) -> None:
        uid, gid, user = self._owner.of(image)
        await self._daemon.aside(lambda: hand_over(spec.output_dir, uid, gid))
        if spec.lease_until is not None:
            await self._leases.give({spec.run_id: spec.lease_until})
        lent = "" if spec.network else await self._pauses.take(spec.project)
        try:
            network = await self._outside.network() if spec.network else f"container:{lent}" if lent else "none"
            means = container.Means(network, self._daemon.info.get("NCPU") or 1.0, user, self._host.house.labels)
            await self._begun(spec, await self._try(spec, container.config(spec, image, means), lent))
        except GurneyError:
            await self._leases.take(spec.run_id)
            await self._pauses.give(spec.project, lent)
            raise

    async def _try(self, spec: RunSpec, body: dict[str, Any], lent: str) -> Begun:
        try:
            return await self._daemon.quick(lambda client: begin(client, self._host, spec, body, lent))
        except NoNamespaceError as error:
            self._pauses.gone(lent)
            raise Unavailable(str(error)) from error  # the start is asked for again
        except Refused as error:
            if error.http_status == _ABSENT:
                raise ImageUnavailable(str(error)) from error
            raise

    async def _begun(self, spec: RunSpec, begun: Begun) -> None:
        run = LiveRun(self._host, spec.run_id, begun.mark, output=begun.output)
        run.lease_until = spec.lease_until
        self._runs.enlist(run)
        self._runs.enforce(run)
        if begun.end is not None:
            await self._runs.told(run, begun.end)
        elif begun.is_doubtful:
            run.was_cut_off()
            self._runs.task(self._runs.look_later(run))


def _check(run_id: str) -> str:
    if not _RUN_ID.fullmatch(run_id):
        raise Invalid.field("run_id", f"{run_id!r} is not a run id")
    return run_id
