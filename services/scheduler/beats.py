"""Follows heartbeats: which nodes there are, what they have, and which of their runs they no longer know."""

from pydantic import ValidationError

from gurney import clock, consume, telemetry
from gurney.errors import RevisionConflict
from gurney.heartbeats import Heartbeats
from gurney.model.base import Reason
from gurney.model.event import Event
from gurney.model.run import Heartbeat, Node, NodeState, Outcome, PlacementState
from gurney.streams import agent_runs
from services.scheduler import census
from services.scheduler.fence import Fence
from services.scheduler.office import Office
from services.scheduler.placer import Placer
from services.scheduler.repository import NODES
from services.scheduler.runs import Runs

#: A run is gone that so many heartbeats in a row did not name.
GONE_BEATS = 2

_log = telemetry.log("scheduler")


class Beats:
    """One per tenure."""

    def __init__(self, office: Office, placer: Placer, runs: Runs) -> None:
        self._service = office.service
        self._store = office.store
        self._tenure = office.tenure
        self._cluster = office.cluster
        self._presence = office.presence
        self._effects = office.effects
        self._placer = placer
        self._runs = runs
        self._fence = Fence(office)
        self._kept = Heartbeats(office.bus)

    async def on_beat(self, subject: str, data: bytes) -> None:
        """Follow a heartbeat as it comes."""
        beat = _decode(subject, data)
        known = self._cluster.beats.get(beat.node) if beat else None
        if beat is None or (known and (known.incarnation, known.at) == (beat.incarnation, beat.at)):
            return
        if not await self._is_of_the_node(beat):
            _log.warning("heartbeat of another host with the same node id", node=beat.node)
            return
        self._tenure.check_epoch(beat.epoch)
        self._cluster.beats[beat.node] = beat
        self._presence.heard(beat.node, beat.runs, clock.monotonic())
        await self._follow(beat)
        await self._look_for_missing(beat, same_agent=known is not None and known.incarnation == beat.incarnation)
        await self._fence.look(beat, known.runs if known else ())

    async def refresh(self) -> None:
        """Read the last heartbeat of each node: those that came while nobody listened."""
        for subject, data in await self._service.bus.latest("KV_heartbeats"):
            beat = _decode(subject, data)
            if beat and beat.node not in self._cluster.beats and await self._is_of_the_node(beat):
                self._presence.heard(beat.node, beat.runs, clock.monotonic())
                await self._follow(beat)

    async def _is_of_the_node(self, beat: Heartbeat) -> bool:
        """Tell whether a heartbeat counts as the node's.

        Another host gets a name only when the former one is lost and none of its runs can be there any more; and only
        by what JetStream has taken: what it refused is heard here, too.
        """
        known = self._cluster.nodes.get(beat.node)
        if known is None or not census.is_another_host(known, beat):
            return True
        confirmed = [each for each in self._cluster.on(beat.node) if each.state is PlacementState.CONFIRMED]
        if known.state is not NodeState.LOST or confirmed:
            return False
        kept = await self._kept.read(beat.node)
        return kept is not None and kept.beat is not None and kept.beat.home == beat.home

    async def _follow(self, beat: Heartbeat) -> None:
        known = self._cluster.nodes.get(beat.node)
        self._cluster.see(await self._join(beat) if known is None else await self._save(beat))
        if known is None or known.incarnation != beat.incarnation:
            self._service.reconcile_soon()
        self._placer.wake()

    async def _join(self, beat: Heartbeat) -> Node:
        node = census.node_of(beat, clock.now())
        await consume.ensure(self._service.bus, agent_runs(node.id))
        try:
            await self._store.insert(NODES, node, self._effects.node("joined", node))
        except RevisionConflict:  # written by a former leader
            return await self._save(beat)
        _log.info("node joined", node=node.id)
        return node

    async def _save(self, beat: Heartbeat) -> Node:
        """Write what is news; returns the node as memory keeps it."""
        at = clock.now()

        def change(saved: Node) -> tuple[Node, list[Event]] | None:
            seen = census.node_of(beat, at, saved)
            if not census.is_worth_saving(saved, seen):
                return None
            after = seen.but(revision=saved.revision + 1)
            is_back = saved.state is NodeState.LOST or census.is_another_host(saved, seen)
            return after, [self._effects.node("joined", after)] if is_back else []

        saved = await self._store.update(NODES, beat.node, change)
        return saved.but(last_seen_at=max(at, saved.last_seen_at), gpus=beat.gpus)

    async def _look_for_missing(self, beat: Heartbeat, *, same_agent: bool) -> None:
        """End the runs that their agent no longer has. An agent names its runs from its first heartbeat on."""
        now = clock.monotonic()
        for placement in self._cluster.on(beat.node):
            notes = self._cluster.notes(placement.id)
            missing = census.is_missing(placement, beat, self._presence.unchanged_for(placement.id, now))
            notes.missed = (notes.missed + 1 if same_agent else 1) if missing else 0
            if notes.missed >= GONE_BEATS:
                reason = Reason.of("node_lost", f"the agent of {beat.node} no longer has the run")
                await self._runs.end(placement.id, beat.node, Outcome(ending="lost", reason=reason))


def _decode(subject: str, data: bytes) -> Heartbeat | None:
    """Return the heartbeat; None where it is none, or not of the node whose key it is under."""
    try:
        beat = Heartbeat.decode(data)
    except ValidationError:
        _log.warning("heartbeat cannot be read", subject=subject)
        return None
    return beat if subject.endswith(f".{beat.node}") else None
