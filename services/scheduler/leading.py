"""Taking over: what is in the documents, and every live placement under the new epoch."""

import contextlib
from collections.abc import AsyncIterator

from gurney import clock, telemetry
from gurney.documents.port import Write
from gurney.errors import NotFound, RevisionConflict
from gurney.model.event import Event
from gurney.model.run import Placement, PlacementState
from gurney.store import Store
from services.scheduler import lease, machine, repository
from services.scheduler.effects import Effects
from services.scheduler.lease import LEADER
from services.scheduler.office import Office
from services.scheduler.placer import Placer
from services.scheduler.repository import BATCH, LEASE, PLACEMENTS
from services.scheduler.shape import shape_of
from services.scheduler.tenure import Tenure
from services.scheduler.waiting import Waiting

_log = telemetry.log("scheduler")


@contextlib.asynccontextmanager
async def able(effects: Effects) -> AsyncIterator[None]:
    """Say at the start what is missing without which nothing can be placed; raises `Invalid`."""
    effects.check()
    yield


@contextlib.asynccontextmanager
async def leading(office: Office, placer: Placer, waiting: Waiting) -> AsyncIterator[None]:
    """Know what is written before anything is decided, for as long as the context is open."""
    store, tenure, cluster, effects = office.store, office.tenure, office.cluster, office.effects
    cluster.nodes = {node.id: node for node in await repository.nodes(store)}
    await take_over(store, effects, tenure.epoch)
    now = clock.now()
    for placement in await repository.live(store):
        tenure.check_epoch(placement.epoch)
        cluster.add(placement)
        if placement.request:
            cluster.demand.saw(shape_of(placement.request), now)
    cluster.epoch = tenure.epoch
    _log.info("leading", epoch=cluster.epoch, nodes=len(cluster.nodes), placements=len(cluster.placements))
    try:
        yield
    finally:
        await waiting.close()
        await placer.close()


@contextlib.asynccontextmanager
async def leading_alone(store: Store, tenure: Tenure) -> AsyncIterator[None]:
    """Take the lease without asking, and keep it for ever: there is no other scheduler, nor can one start."""
    try:
        found = await store.update(LEASE, LEADER, lambda found: (lease.taken(found, "", ""), ()))
    except NotFound:
        found = await store.insert(LEASE, lease.taken(None, "", ""))
    tenure.begin(found.epoch)
    try:
        yield
    finally:
        tenure.end()


async def take_over(store: Store, effects: Effects, epoch: int) -> list[Placement]:
    """Bring every live placement to this epoch; starts that are not confirmed are sent anew under it.

    Whoever led before may still be writing: what it changed meanwhile is read again.
    """
    taken: list[Placement] = []
    while older := await repository.live(store, before=epoch):
        led = [after for found in older if (after := machine.led(found, epoch))]
        for start in range(0, len(led), BATCH):
            batch = led[start : start + BATCH]
            writes = [Write(PLACEMENTS, each.id, each.revision - 1, each, _commands(effects, each)) for each in batch]
            for each, fault in zip(batch, await store.write(*writes), strict=True):
                if fault is None:
                    taken.append(each)
                elif not isinstance(fault, RevisionConflict):
                    raise fault
    return taken


def _commands(effects: Effects, placement: Placement) -> tuple[Event, ...]:
    return (effects.start(placement),) if placement.state is PlacementState.PLACED else ()
