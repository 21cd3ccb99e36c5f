"""Which of the nodes that could take a job takes it: scorers, the first the weightiest; the least score wins. Pure."""

from collections.abc import Callable, Iterable

from services.scheduler.shape import Shape
from services.scheduler.snapshot import NodeView

Scorer = Callable[[NodeView, Shape], float]


def avoided(node: NodeView, shape: Shape) -> float:
    """A node that lost an attempt of this job comes last."""
    return float(node.id in shape.avoid)


def idle_gpus(node: NodeView, shape: Shape) -> float:
    """What needs no GPU stays off the nodes that have them."""
    return len(node.gpus) - shape.gpus


def best_fit(node: NodeView, shape: Shape) -> float:
    """The fuller a node becomes the better: large jobs find room on the others."""
    return (node.free_cpu - shape.cpu) / max(1, node.cpu) + (node.free_memory - shape.memory) / max(1, node.memory)


SCORERS: tuple[Scorer, ...] = (avoided, idle_gpus, best_fit)


def best(nodes: Iterable[NodeView], shape: Shape) -> NodeView:
    """Return the node with the least score; ids decide between equals, so that a plan can be told again."""
    return min(nodes, key=lambda node: (*(score(node, shape) for score in SCORERS), node.id))
