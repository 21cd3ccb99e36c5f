"""What is asked about nodes, and of them."""

from collections.abc import Callable, Sequence

from gurney import clock
from gurney.errors import NoNodes, NoRuntime, NotFound
from gurney.model.common import Page, Ref
from gurney.model.event import Event
from gurney.model.map import InspectAccepted, InspectMap
from gurney.model.run import Node, NodeList
from gurney.paging import cut, decode_cursor, encode_cursor
from services.scheduler import census
from services.scheduler.effects import NodeEvents
from services.scheduler.office import Office
from services.scheduler.placer import Placer
from services.scheduler.repository import NODES


class Nodes:
    """Answers from memory, which heartbeats keep fresh."""

    def __init__(self, office: Office, placer: Placer) -> None:
        self._store = office.store
        self._cluster = office.cluster
        self._effects = office.effects
        self._placer = placer

    async def page(self, question: NodeList) -> Page[Node]:
        """Return nodes in the order of their ids."""
        after = decode_cursor(question.cursor, 1)
        chosen = sorted(name for name in self._cluster.nodes if after is None or name > after[0])
        kept, more = cut(self._views(chosen[: question.limit + 1]), question.limit)
        return Page(items=tuple(kept), next_cursor=encode_cursor(kept[-1].id) if more else None)

    async def get(self, question: Ref) -> Node:
        """Return a node; raises `NotFound`."""
        if question.ref not in self._cluster.nodes:
            raise NotFound(f"there is no node {question.ref}")
        return self._views([question.ref])[0]

    async def drain(self, question: Ref) -> Node:
        """Place nothing more on a node; what is placed there goes on. Raises `NotFound`."""
        return await self._change(question, "drained", census.drained)

    async def resume(self, question: Ref) -> Node:
        """Place jobs on a node again; raises `NotFound`."""
        return await self._change(question, "resumed", census.resumed)

    async def _change(self, question: Ref, event: NodeEvents, decide: Callable[[Node], Node | None]) -> Node:
        def change(saved: Node) -> tuple[Node, Sequence[Event]] | None:
            after = decide(saved)
            return None if after is None else (after, [self._effects.node(event, after)])

        known = await self.get(question)
        self._cluster.see(await self._store.update(NODES, known.id, change))
        self._placer.wake()
        return await self.get(question)

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
        there = [node for node in nodes if node.ready]
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
