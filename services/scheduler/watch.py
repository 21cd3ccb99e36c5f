"""Watches over nodes: loses those that are silent, ends the runs that cannot be there any more, forgets them."""

import asyncio
import contextlib
from collections.abc import Iterator
from datetime import datetime

from gurney import clock, consume, telemetry
from gurney.documents.port import Write
from gurney.errors import GurneyError, NotFound
from gurney.heartbeats import Heartbeats, Kept
from gurney.model.base import Reason
from gurney.model.event import Event
from gurney.model.run import Heartbeat, Node, NodeState, Outcome
from gurney.streams import agent_runs
from gurney.subjects import HEARTBEAT
from services.scheduler import census
from services.scheduler.beats import Beats
from services.scheduler.office import Office
from services.scheduler.repository import NODES
from services.scheduler.runs import Runs

#: Seconds between two looks at most.
LOOK_S = 5.0
#: Looks per time after which a node is lost.
LOOKS = 6

_log = telemetry.log("scheduler")


class Watch:
    """One per tenure. What it decides from silence is believed only when the key of the node is gone, too."""

    def __init__(self, office: Office, beats: Beats, runs: Runs) -> None:
        self._bus = office.bus
        self._store = office.store
        self._cluster = office.cluster
        self._presence = office.presence
        self._effects = office.effects
        self._beats = beats
        self._runs = runs
        self._kept = Heartbeats(office.bus)
        self._pause = min(LOOK_S, office.service.settings.node_lost_after / LOOKS)
        self._looked = 0.0
        #: When the stream of the heartbeats was made; None: not known yet.
        self._created: datetime | None = None

    async def run(self) -> None:
        """Watch until cancelled."""
        self._begin_anew()
        with self._listening():
            while True:
                await asyncio.sleep(self._pause)
                try:
                    await self.look()
                except GurneyError as error:
                    _log.info("nodes cannot be looked after", error=error)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Begin anew with each connection: heartbeats may have come in between."""
        self._bus.on_reconnect.append(self._begin_anew)
        try:
            yield
        finally:
            self._bus.on_reconnect.remove(self._begin_anew)

    def _begin_anew(self) -> None:
        self._looked = clock.monotonic()
        self._presence.restart(self._looked)

    async def look(self) -> None:
        """Look once at every node that is silent."""
        now = clock.monotonic()
        held_up = now - self._looked > 2 * self._pause + 1  # so were the heartbeats that we should have heard
        self._looked = now
        if held_up or not self._bus.raw.is_connected:
            self._begin_anew()
            return
        if self._created is None:
            self._created = await self._kept.created()
        self._presence.keep(self._cluster.placements)
        silent = [node for node in self._cluster.nodes.values() if self._presence.is_silent(node.id, now)]
        if not silent:
            return
        gone = [node for node in silent if not await self._is_heard_of(node)]
        if await self._is_new_stream():
            self._begin_anew()
            return
        for node in gone:
            await self._look_after(node.id)

    async def _is_heard_of(self, node: Node) -> bool:
        """Tell whether the node's key is there; a heartbeat that we have missed is made up for."""
        beat = _beat_of(node, await self._kept.read(node.id))
        if beat is None:
            return False
        await self._beats.on_beat(HEARTBEAT.of(node_id=node.id), beat.encode())
        return True

    async def _is_new_stream(self) -> bool:
        """Tell whether heartbeats may be gone that were there; asked after the keys were read."""
        before, self._created = self._created, await self._kept.created()
        return before != self._created

    async def _look_after(self, name: str) -> None:
        """Lose a node, end what cannot run there any more, forget the node in the end."""
        node = await self._lose(name)
        if node is None:
            return
        for placement in self._cluster.on(name):
            if self._presence.is_gone(placement, node, clock.monotonic()):
                reason = Reason.of("node_lost", f"{name} was not heard of for longer than its runs may live without it")
                await self._runs.end(placement.id, name, Outcome(ending="lost", reason=reason))
        if census.has_left(node, clock.now()) and not self._cluster.on(name):
            await self._forget(node)

    async def _lose(self, name: str) -> Node | None:
        """Write that a node is lost; returns it, None where it was heard of meanwhile."""

        def change(saved: Node) -> tuple[Node, list[Event]] | None:
            after = census.lost(saved) if self._presence.is_silent(name, clock.monotonic()) else None
            return None if after is None else (after, [self._effects.node("lost", after)])

        try:
            saved = await self._store.update(NODES, name, change)
        except NotFound:
            return None
        if saved.state is not NodeState.LOST:
            return None
        known = self._cluster.nodes.get(name)
        if known is None or known.state is not NodeState.LOST:
            _log.warning("node lost", node=name)
        return self._cluster.see(saved)

    async def _forget(self, node: Node) -> None:
        write = Write(NODES, node.id, node.revision, None, (self._effects.node("left", node),))
        (fault,) = await self._store.write(write)
        if fault:
            raise fault
        self._cluster.nodes.pop(node.id, None)
        self._cluster.beats.pop(node.id, None)
        await consume.remove(self._bus, agent_runs(node.id))
        _log.info("node left", node=node.id)


def _beat_of(node: Node, kept: Kept | None) -> Heartbeat | None:
    """Return the node's own heartbeat that lies under its key."""
    beat = kept.beat if kept else None
    return None if beat is None or census.is_another_host(node, beat) else beat
