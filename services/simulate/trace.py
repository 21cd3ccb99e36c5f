"""Nodes and tasks of a GPU cluster trace: files with the columns of the public one (Alibaba, 2023), or rows made up.

A GPU counts as 1,000 units (MiB, to the scheduler), whatever it is: that is how shares are given there.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gurney.errors import Invalid
from gurney.model.resources import Amount, Gpu
from gurney.model.run import Node, NodeState
from services.scheduler.shape import MIB, MILLI, Shape

#: Units of a whole GPU.
WHOLE = 1000
URN = "urn:oci:simulated"
#: The virtual clock's zero.
EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Task:
    """One row of a task list."""

    shape: Shape
    #: Seconds after the trace's beginning.
    at: float = 0.0
    #: Seconds for which it runs.
    runs: float = 0.0
    project: str = "default"
    #: Whose runs take alike times.
    map: str = ""

    @property
    def units(self) -> int:
        """GPU units that it takes."""
        return self.shape.gpu_share or self.shape.gpus * WHOLE


def node(name: str, cpu_milli: int, memory_mib: int, gpus: int, model: str) -> Node:
    """Return a simulated node."""
    devices = tuple(Gpu(uuid=f"{name}-{number}", model=model, memory=WHOLE * MIB) for number in range(gpus))
    return Node(
        id=name,
        state=NodeState.READY,
        simulated=True,
        capacity=Amount(cpu=cpu_milli / MILLI, memory=memory_mib * MIB, gpus=gpus),
        gpus=devices,
        gpu_sharing=True,
        kinds=("urn:oci:",),
        last_seen_at=EPOCH,
    )


def shape(cpu_milli: int, memory_mib: int, gpus: int = 0, gpu_milli: int = WHOLE, models: Iterable[str] = ()) -> Shape:
    """Return what a task asks. A share of a GPU is shared; whole ones are not."""
    share = gpu_milli if gpus == 1 and 0 < gpu_milli < WHOLE else 0
    return Shape(
        urn=URN,
        cpu=cpu_milli,
        memory=memory_mib * MIB,
        gpus=gpus,
        gpu_share=share,
        gpu_models=tuple(sorted(set(models))) if gpus else (),
    )


def read_nodes(path: Path) -> list[Node]:
    """Return the nodes of a file; raises `Invalid` where a column is missing or not a number."""
    return [
        node(row["sn"], int(row["cpu_milli"]), int(row["memory_mib"]), int(row["gpu"]), row["model"])
        for row in _rows(path, ("sn", "cpu_milli", "memory_mib", "gpu", "model"))
    ]


def read_tasks(path: Path) -> list[Task]:
    """Return the tasks of a file; raises `Invalid` where a column is missing or not a number."""
    return [_task(row) for row in _rows(path, ("cpu_milli", "memory_mib", "num_gpu", "gpu_milli"))]


def _task(row: Mapping[str, str]) -> Task:
    at = float(row.get("creation_time") or 0)
    begun = float(row.get("scheduled_time") or at)
    ended = float(row.get("deletion_time") or begun)
    models = [name for name in (row.get("gpu_spec") or "").split("|") if name]
    asked = shape(
        int(row["cpu_milli"]), int(row["memory_mib"]), int(row["num_gpu"]), int(row["gpu_milli"] or WHOLE), models
    )
    return Task(asked, at, max(0.0, ended - begun), row.get("project") or row.get("qos") or "default")


def _rows(path: Path, needed: tuple[str, ...]) -> Iterator[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in needed if name not in (reader.fieldnames or ())]
            if missing:
                raise Invalid(f"{path}: there is no column {', '.join(missing)}")
            for row in reader:
                _check(path, reader.line_num, row, needed)
                yield row
    except OSError as error:
        raise Invalid(f"{path}: {error.strerror}") from error


def _check(path: Path, line: int, row: Mapping[str, str | None], needed: tuple[str, ...]) -> None:
    for name in needed:
        text = row[name]
        if name not in {"sn", "model"} and not (text or "0").isdecimal():
            raise Invalid(f"{path}, line {line}: {name} is {text!r}, not a number")
