"""Why a job was not placed: filters over nodes, each with its reason, counted over the nodes that give it. Pure.

`EVER` asks whether a node could hold the job at all; `NOW` also whether it may and has room at this moment. A node
gives one reason, that of the first filter that refuses it.

A filter says how much a node must have of something, and how much it has: one node by itself, or all rows of a board.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gurney.model.job import WaitReason
from gurney.model.run import NodeState
from services.scheduler.board import Board
from services.scheduler.grid import DRAINING, LOST, NOWHERE, SILENT
from services.scheduler.shape import MILLI, NEVER, Shape, takes
from services.scheduler.snapshot import NodeView

GIB = 1024**3

Amounts = npt.NDArray[Any]


class Filter(NamedTuple):
    """One thing of which a node must have enough."""

    #: Of the reason.
    code: str
    needs: Callable[[Shape], int]
    has: Callable[[NodeView, Shape], int]
    #: The same of each row.
    rows_have: Callable[[Board, Shape], Amounts]
    #: What is wrong where the best of the nodes that are refused has so much.
    says: Callable[[Shape, int], str]


# --- what rows have ---


def _homes(board: Board, runs: list[bool]) -> Amounts:
    return np.array(runs, dtype=np.int64)[board.home]


def _parts(board: Board, shape: Shape) -> Amounts:
    """Return how many MiB the shape takes of each GPU."""
    return np.array([*(takes(device, shape) for device in board.devices), NEVER], dtype=np.int64)[board.kind]


def _known(board: Board, shape: Shape, does: Callable[[Amounts], Amounts]) -> Amounts:
    """Return of how many GPUs that holds which is asked of what the shape takes of them."""
    count: Amounts = does(_parts(board, shape)).sum(axis=1)
    return count


def _most_free(board: Board, shape: Shape) -> Amounts:
    parts = _parts(board, shape)
    most: Amounts = np.where((parts == shape.gpu_share) | (board.free >= parts), board.free, 0).max(axis=1, initial=0)
    return most


def _free_for(node: NodeView, uuid: str, shape: Shape) -> int:
    """Return how many MiB of a GPU are free to a share: where it may not be shared, all or none."""
    part, free = takes(node.devices[uuid], shape), max(0, node.free_mib[uuid])
    return free if part == shape.gpu_share or free >= part else 0


# --- the filters ---


def _state(code: str, state: NodeState, standing: int, message: str) -> Filter:
    """Return the filter that refuses the nodes of a state."""
    return Filter(
        code,
        needs=lambda _: 1,
        has=lambda node, _: node.state is not state,
        rows_have=lambda board, _: board.standing != standing,
        says=lambda *_: message,
    )


def _gpus_but_for(code: str, says: Callable[[Shape, int], str], **less: Any) -> Filter:
    """Return the filter that wants enough GPUs that do, but for a part of what is asked of them."""
    return Filter(
        code,
        needs=lambda shape: shape.gpus,
        has=lambda node, shape: len(node.suited(replace(shape, **less))) if shape.gpus else 0,
        rows_have=lambda board, shape: _known(board, replace(shape, **less), lambda part: part < NEVER),
        says=says,
    )


EVER: tuple[Filter, ...] = (
    Filter(
        "no_runtime",
        needs=lambda _: 1,
        has=lambda node, shape: shape.urn.startswith(node.kinds),
        rows_have=lambda board, shape: _homes(board, [shape.urn.startswith(kinds) for kinds, _ in board.homes]),
        says=lambda shape, _: f"no runtime for {shape.urn}",
    ),
    Filter(
        "node_labels",
        needs=lambda _: 1,
        has=lambda node, shape: set(shape.labels) <= set(node.labels.items()),
        rows_have=lambda board, shape: _homes(board, [set(shape.labels) <= set(labels) for _, labels in board.homes]),
        says=lambda shape, _: (
            f"asks a node with the labels {', '.join(f'{key}={value}' for key, value in shape.labels)}"
        ),
    ),
    Filter(
        "gpus",
        needs=lambda shape: shape.gpus,
        has=lambda node, _: len(node.devices),
        rows_have=lambda board, _: (board.kind >= 0).sum(axis=1),
        says=lambda shape, most: f"asks {shape.gpus} GPUs, the node has {most}",
    ),
    _gpus_but_for(
        "gpu_model",
        lambda shape, most: f"asks {_gpus(shape)}, the node has {most} of this model",
        compute_capability=(),
        gpu_memory=0,
        gpu_share=0,
    ),
    _gpus_but_for(
        "compute_capability",
        lambda shape, most: (
            f"asks {_gpus(shape)}, the node has {most} of compute capability {_version(shape)} or later"
        ),
        gpu_memory=0,
        gpu_share=0,
    ),
    _gpus_but_for("gpu_memory", lambda shape, most: f"asks {_gpus(shape)}, the node has {most} with so much memory"),
    Filter(
        "cpu",
        needs=lambda shape: shape.cpu,
        has=lambda node, _: node.cpu,
        rows_have=lambda board, _: board.size[:, 0],
        says=lambda shape, most: f"asks {_cores(shape.cpu)}, the node has {_cores(most)}",
    ),
    Filter(
        "memory",
        needs=lambda shape: shape.memory,
        has=lambda node, _: node.memory,
        rows_have=lambda board, _: board.size[:, 1],
        says=lambda shape, most: f"asks {_gib(shape.memory)}, the node has {_gib(most)}",
    ),
)

NOW: tuple[Filter, ...] = (
    *EVER,
    _state("lost", NodeState.LOST, LOST, "the node is lost"),
    _state("draining", NodeState.DRAINING, DRAINING, "the node takes no new jobs"),
    Filter(
        "silent",
        needs=lambda _: 1,
        has=lambda node, _: not node.silent,
        rows_have=lambda board, _: board.standing != SILENT,
        says=lambda *_: "the node has not been heard of",
    ),
    Filter(
        "gpus_busy",
        needs=lambda shape: 0 if shape.gpu_share else shape.gpus,
        has=lambda node, shape: len(node.free_suited(shape)),
        rows_have=lambda board, shape: (board.free >= _parts(board, shape)).sum(axis=1),
        says=lambda shape, most: f"asks {_gpus(shape)}, {most} of them are free",
    ),
    Filter(
        "gpu_share_busy",
        needs=lambda shape: shape.gpu_share,
        has=lambda node, shape: max((_free_for(node, uuid, shape) for uuid in node.suited(shape)), default=0),
        rows_have=_most_free,
        says=lambda shape, most: f"asks {_gpus(shape)}, {most} MiB of one are free",
    ),
    Filter(
        "cpu_busy",
        needs=lambda shape: shape.cpu,
        has=lambda node, _: node.free_cpu,
        rows_have=lambda board, _: board.cpu,
        says=lambda shape, most: f"asks {_cores(shape.cpu)}, {_cores(most)} are free",
    ),
    Filter(
        "memory_busy",
        needs=lambda shape: shape.memory,
        has=lambda node, _: node.free_memory,
        rows_have=lambda board, _: board.memory,
        says=lambda shape, most: f"asks {_gib(shape.memory)}, {_gib(most)} are free",
    ),
)

BOOKED = "room is kept for a job that waits until there is enough for it"
NO_NODES = WaitReason(code="no_nodes", count=0, message="no node is known")


def passing(nodes: Iterable[NodeView], shape: Shape, filters: Sequence[Filter]) -> list[NodeView]:
    """Return the nodes that pass every filter."""
    return [node for node in nodes if all(each.has(node, shape) >= each.needs(shape) for each in filters)]


def reasons(nodes: Iterable[NodeView], shape: Shape, filters: Sequence[Filter]) -> tuple[WaitReason, ...]:
    """Return why nodes do not pass, the most frequent first; empty where one passes."""
    refused: dict[Filter, list[int]] = {}
    for node in nodes:
        for each in filters:
            if (has := each.has(node, shape)) < each.needs(shape):
                refused.setdefault(each, []).append(has)
                break
        else:
            return ()
    return _in_order([_reason(each, shape, len(have), max(have)) for each, have in refused.items()])


def counted(board: Board, shape: Shape, booked: Sequence[str] = ()) -> tuple[WaitReason, ...]:
    """Return what `reasons` says of the nodes of a board and of `NOW`, at once for all rows.

    `booked`: those that would have room, were it not kept for others.
    """
    left = (board.standing != NOWHERE) & ~board.are(booked)
    found = [WaitReason(code="booked", count=len(booked), message=BOOKED)] if booked else []
    for each in NOW:
        have = each.rows_have(board, shape)
        refused = left & (have < each.needs(shape))
        if count := int(refused.sum()):
            found.append(_reason(each, shape, count, int(have[refused].max())))
            left &= ~refused
    return () if left.any() else _in_order(found)


def _reason(refuses: Filter, shape: Shape, count: int, most: int) -> WaitReason:
    return WaitReason(code=refuses.code, count=count, message=refuses.says(shape, most))


def _in_order(found: list[WaitReason]) -> tuple[WaitReason, ...]:
    return tuple(sorted(found, key=lambda reason: (-reason.count, reason.code))) or (NO_NODES,)


# --- words ---


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
