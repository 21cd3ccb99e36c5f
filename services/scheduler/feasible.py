"""Why a job was not placed: filters over nodes, each with its reason, counted over the nodes that give it. Pure.

`EVER` asks whether a node could hold the job at all; `NOW` also whether it may and has room at this moment. A node
gives one reason, that of the first filter that refuses it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from gurney.model.job import WaitReason
from gurney.model.run import NodeState
from services.scheduler.shape import MILLI, Shape, takes
from services.scheduler.snapshot import NodeView

GIB = 1024**3

#: Tells whether a node passes.
Test = Callable[[NodeView, Shape], bool]
#: Says what is wrong, for the nodes that did not pass.
Say = Callable[[Sequence[NodeView], Shape], str]
#: Reason code, test, sentence.
Filter = tuple[str, Test, Say]


def _has(node: NodeView, shape: Shape, **less: Any) -> bool:
    """Tell whether a node has GPUs that do, but for a part of what is asked."""
    return not shape.gpus or len(node.suited(replace(shape, **less))) >= shape.gpus


EVER: tuple[Filter, ...] = (
    (
        "no_runtime",
        lambda node, shape: shape.urn.startswith(node.kinds),
        lambda _, shape: f"no runtime for {shape.urn}",
    ),
    (
        "node_labels",
        lambda node, shape: all(node.labels.get(key) == value for key, value in shape.labels),
        lambda _, shape: f"asks a node with the labels {', '.join(f'{key}={value}' for key, value in shape.labels)}",
    ),
    (
        "gpus",
        lambda node, shape: len(node.devices) >= shape.gpus,
        lambda nodes, shape: f"asks {shape.gpus} GPUs, the node has {max(len(node.devices) for node in nodes)}",
    ),
    (
        "gpu_model",
        lambda node, shape: _has(node, shape, compute_capability=(), gpu_memory=0, gpu_share=0),
        lambda _, shape: f"asks {_gpus(shape)}, the node has too few GPUs of this model",
    ),
    (
        "compute_capability",
        lambda node, shape: _has(node, shape, gpu_memory=0, gpu_share=0),
        lambda _, shape: (
            f"asks {_gpus(shape)}, the node has too few GPUs of compute capability {_version(shape)} or later"
        ),
    ),
    (
        "gpu_memory",
        _has,
        lambda _, shape: f"asks {_gpus(shape)}, the node has too few GPUs with so much memory",
    ),
    (
        "cpu",
        lambda node, shape: node.cpu >= shape.cpu,
        lambda nodes, shape: f"asks {_cores(shape.cpu)}, the node has {_cores(max(node.cpu for node in nodes))}",
    ),
    (
        "memory",
        lambda node, shape: node.memory >= shape.memory,
        lambda nodes, shape: f"asks {_gib(shape.memory)}, the node has {_gib(max(node.memory for node in nodes))}",
    ),
)

NOW: tuple[Filter, ...] = (
    *EVER,
    ("lost", lambda node, _: node.state is not NodeState.LOST, lambda *_: "the node is lost"),
    ("draining", lambda node, _: node.state is not NodeState.DRAINING, lambda *_: "the node takes no new jobs"),
    ("silent", lambda node, _: not node.silent, lambda *_: "the node has not been heard of"),
    (
        "gpus_busy",
        lambda node, shape: bool(shape.gpu_share) or len(node.free_suited(shape)) >= shape.gpus,
        lambda nodes, shape: (
            f"asks {_gpus(shape)}, {max(len(node.free_suited(shape)) for node in nodes)} of them are free"
        ),
    ),
    (
        "gpu_share_busy",
        lambda node, shape: len(node.free_suited(shape)) >= shape.gpus,
        lambda nodes, shape: f"asks {_gpus(shape)}, {_shareable(nodes, shape)}",
    ),
    (
        "cpu_busy",
        lambda node, shape: node.free_cpu >= shape.cpu,
        lambda nodes, shape: f"asks {_cores(shape.cpu)}, {_cores(max(node.free_cpu for node in nodes))} are free",
    ),
    (
        "memory_busy",
        lambda node, shape: node.free_memory >= shape.memory,
        lambda nodes, shape: f"asks {_gib(shape.memory)}, {_gib(max(node.free_memory for node in nodes))} are free",
    ),
)

NO_NODES = WaitReason(code="no_nodes", count=0, message="no node is known")


def passing(nodes: Iterable[NodeView], shape: Shape, filters: Sequence[Filter]) -> list[NodeView]:
    """Return the nodes that pass every filter."""
    return [node for node in nodes if all(test(node, shape) for _, test, _ in filters)]


def reasons(nodes: Iterable[NodeView], shape: Shape, filters: Sequence[Filter]) -> tuple[WaitReason, ...]:
    """Return why nodes do not pass, the most frequent first; empty where one passes."""
    refused: dict[str, list[NodeView]] = {}
    for node in nodes:
        code = next((code for code, test, _ in filters if not test(node, shape)), None)
        if code is None:
            return ()
        refused.setdefault(code, []).append(node)
    if not refused:
        return (NO_NODES,)
    says = {code: say for code, _, say in filters}
    found = [WaitReason(code=code, count=len(them), message=says[code](them, shape)) for code, them in refused.items()]
    return tuple(sorted(found, key=lambda reason: (-reason.count, reason.code)))


def _cores(milli: int) -> str:
    return f"{milli / MILLI:g} cores"


def _gib(size: int) -> str:
    return f"{size / GIB:.3g} GiB"


def _gpus(shape: Shape) -> str:
    models = f" {' or '.join(shape.gpu_models)}" if shape.gpu_models else ""
    if shape.gpu_share:
        return f"{shape.gpu_share} MiB of a{models} GPU"
    memory = f" with {_gib(shape.gpu_memory)}" if shape.gpu_memory else ""
    return f"{shape.gpus}{models} GPUs{memory}"


def _version(shape: Shape) -> str:
    return ".".join(map(str, shape.compute_capability))


def _shareable(nodes: Sequence[NodeView], shape: Shape) -> str:
    """Say how much is free of one GPU where it may be shared, else that none is free."""
    free = [
        node.free_mib[uuid]
        for node in nodes
        for uuid in node.suited(shape)
        if takes(node.devices[uuid], shape) == shape.gpu_share
    ]
    return f"{max(free)} MiB of one are free" if free else "it may not be shared, and none is free"
