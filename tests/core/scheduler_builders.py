"""Builders for the scheduler's tests: nodes, requests, and small worlds that Hypothesis draws."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from gurney.model.job import PlacementRequest, Priority, RunRequest
from gurney.model.resources import Amount, Gpu, Resources
from gurney.model.run import Node, NodeState, Placement
from services.scheduler import machine
from services.scheduler.demand import Typical, task_of, typical_of
from services.scheduler.order import Queue, entry_of
from services.scheduler.plan import Decision
from services.scheduler.shape import shape_of
from services.scheduler.shares import Using
from services.scheduler.snapshot import Snapshot, snapshot_of
from services.scheduler.turns import Rules, ahead

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RULES = Rules(NOW)
SILENT_AFTER = timedelta(seconds=15)
DIR = "urn:gurney:dir:"
OCI = "urn:oci:"
GIB = 1024**3


def job_id(number: int) -> str:
    """Return the id of a job; a later number is a younger job."""
    return f"job_{number:026d}"


def a_run(urn: str = f"{DIR}sample", **resources: Any) -> RunRequest:
    return RunRequest(
        urn=urn,
        digest="sha256:0",
        generation="monai",
        command=("true",),
        input_path="input",
        output_path="output",
        payload="pay_0",
        resources=Resources(**{"cpu": 1.0, "memory": GIB} | resources),
    )


def a_request(number: int = 1, *, attempt: int = 1, age_s: float = 0, **more: Any) -> PlacementRequest:
    """Return a job's request; keywords are its priority, what it avoids, or resources."""
    chosen = {name: more.pop(name) for name in ("priority", "avoid", "created_by") if name in more}
    at = NOW - timedelta(seconds=age_s)
    return PlacementRequest(
        **{"priority": Priority.NORMAL, "created_by": "tester"} | chosen,
        job_id=job_id(number),
        attempt=attempt,
        project="default",
        requested_at=at,
        created_at=at,
        request=a_run(**more),
    )


def a_node(name: str = "n1", *, gpus: Sequence[Gpu] = (), cpu: float = 4, memory: int = 8 * GIB, **more: Any) -> Node:
    fields = {"state": NodeState.READY, "kinds": (DIR,), "last_seen_at": NOW} | more
    return Node(id=name, capacity=Amount(cpu=cpu, memory=memory, gpus=len(gpus)), gpus=tuple(gpus), **fields)


def a_gpu(name: str, **more: Any) -> Gpu:
    return Gpu(uuid=f"GPU-{name}", **{"model": "A", "memory": 16 * GIB} | more)


def a_placement(
    number: int = 1, node: str = "n1", *, gpus: tuple[str, ...] = (), share: int = 0, **more: Any
) -> Placement:
    """Return a placement as it is first written; `share` is MiB of its GPU."""
    return machine.placed(Decision(entry_of(a_request(number, **more), NOW), node, NOW, gpus, share), epoch=1)


def a_queue(*requests: PlacementRequest) -> Queue:
    queue = Queue()
    for request in requests:
        queue.add(entry_of(request, NOW))
    return queue


def places(queue: Queue, rules: Rules = RULES) -> dict[str, int]:
    """Return the position of each job that waits."""
    entries = [entry for lane in queue.lanes.values() for entry in lane]
    before = {entry.job_id: ahead(entry, queue.lanes.values(), rules.ranking({}, Using())) for entry in entries}
    return {job: 1 + sum(map(len, lanes)) for job, lanes in before.items()}


def a_snapshot(
    nodes: Sequence[Node], placements: Sequence[Placement] = (), typical: tuple[Typical, ...] = ()
) -> Snapshot:
    return snapshot_of(nodes, placements, NOW, SILENT_AFTER, typical)


# --- what Hypothesis draws ---

CORES = (0.01, 0.1, 0.5, 1.0, 2.0, 3.0)
#: What a job may ask, the impossible included.
ASKS = st.fixed_dictionaries(
    {
        "cpu": st.sampled_from((*CORES, 64.0)),
        "memory": st.sampled_from((0, GIB // 64, GIB, 3 * GIB, 512 * GIB)),
        "gpus": st.sampled_from((0, 0, 0, 1, 2)),
        "gpu_share": st.sampled_from((None, None, 3 * GIB, 8 * GIB)),
        "gpu_model": st.sampled_from((None, None, None, "A", "A|B", "C")),
        "compute_capability": st.sampled_from((None, None, None, "8.0", "9.0")),
        "urn": st.sampled_from((f"{DIR}a", f"{DIR}b", f"{OCI}c")),
        "priority": st.sampled_from(Priority),
        "avoid": st.sampled_from(((), ("n0",))),
        "node_labels": st.sampled_from((None, {"site": "a"})),
    }
)


#: What GPUs may be like.
GPUS = st.fixed_dictionaries(
    {
        "model": st.sampled_from(("A", "A", "B")),
        "memory": st.sampled_from((16 * GIB, 16 * GIB, 24 * GIB)),
        "compute_capability": st.sampled_from((None, "8.0", "9.0")),
        "health": st.sampled_from(("ok", "ok", "ok", "bad")),
        "others": st.sampled_from((0, 0, 0, 3 * GIB)),
        "parent": st.sampled_from((None, None, None, "GPU-0")),
    }
)


#: What nodes may hold of MAPs: of the one that requests are of, and of another.
IMAGES = st.sampled_from(((), (), ("0",), ("1",), ("0", "1")))


@st.composite
def some_nodes(draw: st.DrawFn) -> list[Node]:
    """Draw up to four nodes of all sorts."""
    nodes = []
    for number in range(draw(st.integers(0, 4))):
        gpus = [a_gpu(f"{number}-{each}", **draw(GPUS)) for each in range(draw(st.integers(0, 3)))]
        node = a_node(
            f"n{number}",
            gpus=gpus,
            gpu_sharing=draw(st.booleans()),
            images=draw(IMAGES),
            cpu=draw(st.sampled_from(CORES)),
            memory=draw(st.sampled_from((GIB, 4 * GIB))),
            kinds=draw(st.sampled_from(((), (DIR,), (DIR, OCI)))),
            labels=draw(st.sampled_from(({}, {"site": "a"}))),
            state=draw(st.sampled_from((NodeState.READY, NodeState.READY, NodeState.DRAINING, NodeState.LOST))),
            last_seen_at=NOW - timedelta(seconds=draw(st.sampled_from((0, 0, 0, 60)))),
        )
        nodes.append(node)
    return nodes


@st.composite
def roomy_nodes(draw: st.DrawFn) -> list[Node]:
    """Draw up to four nodes that would take most jobs, for a while."""
    return [
        a_node(
            f"n{number}",
            gpus=[a_gpu(f"{number}-{each}", **draw(GPUS)) for each in range(draw(st.integers(0, 4)))],
            gpu_sharing=draw(st.booleans()),
            images=draw(IMAGES),
            cpu=draw(st.sampled_from((4, 8, 12.5))),
            memory=draw(st.sampled_from((8 * GIB, 64 * GIB))),
            labels={"site": "a"},
        )
        for number in range(draw(st.integers(1, 4)))
    ]


#: What most nodes could hold.
MODEST_ASKS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "cpu": st.sampled_from((0.1, 0.5, 1.0, 2.0)),
        "memory": st.sampled_from((0, GIB, 3 * GIB)),
        "gpus": st.sampled_from((None, None, 0, 1, 2, 3)),
        "gpu_share": st.sampled_from((None, 3 * GIB, 5 * GIB, 8 * GIB)),
        "gpu_model": st.sampled_from((None, None, None, "A", "A|B")),
    }
)


@st.composite
def modest_requests(draw: st.DrawFn) -> list[PlacementRequest]:
    """Draw up to twelve jobs of which most find room."""
    asked = draw(st.lists(MODEST_ASKS, max_size=12))
    return [a_request(number, age_s=draw(st.integers(0, 10_000)), **each) for number, each in enumerate(asked)]


@st.composite
def some_requests(draw: st.DrawFn) -> list[PlacementRequest]:
    """Draw up to twelve jobs of all sorts and ages."""
    asked = draw(st.lists(ASKS, max_size=12))
    return [a_request(number, age_s=draw(st.integers(0, 10_000)), **each) for number, each in enumerate(asked)]


@st.composite
def something_typical(draw: st.DrawFn) -> tuple[Typical, ...]:
    """Draw what is mostly asked; nothing may be known of it."""
    asked = draw(st.lists(st.one_of(ASKS, MODEST_ASKS), max_size=6))
    shapes = [task_of(shape_of(a_request(**each).request)) for each in asked]
    return typical_of(Counter(shapes))
