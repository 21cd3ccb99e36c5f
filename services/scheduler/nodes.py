"""Nodes as their heartbeats tell of them, and what is asked about them."""

from datetime import datetime, timedelta

from pydantic import ValidationError

from gurney import clock, consume, telemetry
from gurney.errors import NoNodes, NoRuntime, NotFound
from gurney.model.base import Reason
from gurney.model.common import Page, Ref
from gurney.model.map import InspectAccepted, InspectMap
from gurney.model.run import Heartbeat, Node, NodeList, NodeState, Outcome, Placement, PlacementState
from gurney.paging import cut, decode_cursor, encode_cursor
from gurney.service import Service
from gurney.streams import agent_runs
from services.scheduler.cluster import Cluster
from services.scheduler.effects import Effects
from services.scheduler.placer import Placer
from services.scheduler.repository import NODES
from services.scheduler.runs import Runs

#: `last_seen_at` is written this often; memory has it from every heartbeat.
SAVE_EVERY = timedelta(seconds=30)
#: A confirmed run that its agent does not name is gone, this long after it was confirmed ...
GONE_AFTER = timedelta(seconds=15)
#: ... and after so many heartbeats in a row.
GONE_BEATS = 2

_log = telemetry.log("scheduler")


def node_of(beat: Heartbeat, at: datetime, known: Node | None = None) -> Node:
    """Return the node that a heartbeat tells of, at its known revision."""
    return Node(
        id=beat.node,
        revision=known.revision if known else 1,
        state=known.state if known else NodeState.READY,
        labels=beat.labels,
        simulated=beat.simulated,
        capacity=beat.capacity,
        gpus=beat.gpus,
        images=beat.images,
        kinds=beat.kinds,
        incarnation=beat.incarnation,
        last_seen_at=max(at, known.last_seen_at) if known else at,
    )


def is_worth_saving(saved: Node, seen: Node) -> bool:
    """Tell whether a node's document is to follow what was seen."""
    same = seen.but(last_seen_at=saved.last_seen_at, revision=saved.revision) == saved
    return not same or seen.last_seen_at - saved.last_seen_at >= SAVE_EVERY


def is_missing(placement: Placement, beat: Heartbeat, at: datetime) -> bool:
    """Tell whether a heartbeat should name this run and does not."""
    if placement.state is not PlacementState.CONFIRMED or placement.confirmed_at is None:
        return False
    return at - placement.confirmed_at > GONE_AFTER and placement.id not in beat.runs


class Nodes:
    """Follows heartbeats, answers what is asked about nodes."""

    def __init__(self, service: Service, cluster: Cluster, placer: Placer, runs: Runs, effects: Effects) -> None:
        self._service = service
        self._cluster = cluster
        self._placer = placer
        self._runs = runs
        self._effects = effects

    # --- heartbeats ---

    async def on_beat(self, subject: str, data: bytes) -> None:
        """Follow a heartbeat as it comes."""
        beat = _decode(subject, data)
        known = self._cluster.beats.get(beat.node) if beat else None
        if beat is None or (known and (known.incarnation, known.at) == (beat.incarnation, beat.at)):
            return
        self._cluster.beats[beat.node] = beat
        await self._follow(beat, clock.now())
        await self._look_for_missing(beat, same_agent=known is not None and known.incarnation == beat.incarnation)

    async def refresh(self) -> None:
        """Read the last heartbeat of each node: those that came while nobody listened."""
        for subject, data in await self._service.bus.latest("KV_heartbeats"):
            beat = _decode(subject, data)
            if beat and beat.node not in self._cluster.beats:
                await self._follow(beat, min(beat.at, clock.now()))

    async def _follow(self, beat: Heartbeat, at: datetime) -> None:
        known = self._cluster.nodes.get(beat.node)
        seen = node_of(beat, at, known)
        self._cluster.nodes[beat.node] = await self._join(seen) if known is None else await self._save(seen)
        if known is None or known.incarnation != beat.incarnation:
            self._service.reconcile_soon()
        self._placer.wake()

    async def _join(self, node: Node) -> Node:
        await consume.ensure(self._service.bus, agent_runs(node.id))
        await self._service.store.insert(NODES, node, self._effects.joined(node))
        _log.info("node joined", node=node.id)
        return node

    async def _save(self, seen: Node) -> Node:
        """Write what is news; returns the node as memory keeps it."""

        def change(saved: Node) -> tuple[Node, tuple[()]] | None:
            return (seen.but(revision=saved.revision + 1), ()) if is_worth_saving(saved, seen) else None

        saved = await self._service.store.update(NODES, seen.id, change)
        return saved.but(last_seen_at=seen.last_seen_at)

    async def _look_for_missing(self, beat: Heartbeat, *, same_agent: bool) -> None:
        """End the runs that their agent no longer has. An agent names its runs from its first heartbeat on."""
        now = clock.now()
        for placement in [each for each in self._cluster.placements.values() if each.node == beat.node]:
            notes = self._cluster.notes(placement.id)
            missing = is_missing(placement, beat, now)
            notes.missed = (notes.missed + 1 if same_agent else 1) if missing else 0
            if notes.missed >= GONE_BEATS:
                reason = Reason.of("node_lost", f"the agent of {beat.node} no longer has the run")
                await self._runs.end(placement.id, beat.node, Outcome(ending="lost", reason=reason))

    # --- questions ---

    async def page(self, question: NodeList) -> Page[Node]:
        """Return nodes in the order of their ids."""
        after = decode_cursor(question.cursor, 1)
        chosen = sorted(name for name in self._cluster.nodes if after is None or name > after[0])
        kept, more = cut(self._views(chosen[: question.limit + 1]), question.limit)
        return Page(items=tuple(kept), next_cursor=encode_cursor(kept[-1].id) if more else None)

    async def get(self, question: Ref) -> Node:
        if question.ref not in self._cluster.nodes:
            raise NotFound(f"there is no node {question.ref}")
        return self._views([question.ref])[0]

    def _views(self, names: list[str]) -> list[Node]:
        snapshot, nodes = self._cluster.snapshot(clock.now()), self._cluster.nodes
        views = [(nodes[name], snapshot.nodes[name]) for name in names]
        return [node.but(used=view.used, free=view.free) for node, view in views]

    async def inspect(self, question: InspectMap) -> InspectAccepted:
        """Have a node read a MAP: one that was not tried, where there is one.

        Raises `NoRuntime` where no node runs such MAPs, `NoNodes` where none that does is there now.
        """
        node = self._inspector(question)
        await self._effects.publish(self._effects.inspect(question, node))
        return InspectAccepted(node=node)

    def _inspector(self, question: InspectMap) -> str:
        nodes = list(self._cluster.snapshot(clock.now()).nodes.values())
        there = [node for node in nodes if node.state is NodeState.READY and not node.silent]
        able = [node for node in nodes if question.urn.startswith(node.kinds)]
        if there and not able:
            raise NoRuntime(f"no node has a runtime for {question.urn}")
        chosen = min(
            (node for node in able if node in there),
            key=lambda node: (node.id in question.avoid, node.used_cpu / max(1, node.cpu), node.id),
            default=None,
        )
        if chosen is None:
            raise NoNodes("no node that could inspect the MAP is there now", retry_after_s=5)
        return chosen.id


def _decode(subject: str, data: bytes) -> Heartbeat | None:
    """Return the heartbeat; None where it is none, or not of the node whose key it is under."""
    try:
        beat = Heartbeat.decode(data)
    except ValidationError:
        _log.warning("heartbeat cannot be read", subject=subject)
        return None
    return beat if subject.endswith(f".{beat.node}") else None
