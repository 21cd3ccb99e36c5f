"""Taking over: a new epoch, then what is in the documents, then every live placement under the new epoch."""

import contextlib
from collections.abc import AsyncIterator

from gurney import telemetry
from gurney.documents.port import Write
from gurney.errors import NotFound
from gurney.model.event import Event
from gurney.model.run import Leadership, Placement, PlacementState
from gurney.store import Store
from services.scheduler import machine, repository
from services.scheduler.cluster import Cluster
from services.scheduler.effects import Effects
from services.scheduler.placer import Placer
from services.scheduler.repository import BATCH, LEADER, LEASE, PLACEMENTS
from services.scheduler.waiting import Waiting

_log = telemetry.log("scheduler")


@contextlib.asynccontextmanager
async def leading(
    store: Store, cluster: Cluster, placer: Placer, waiting: Waiting, effects: Effects
) -> AsyncIterator[None]:
    """Lead as long as the context is open."""
    effects.check()
    cluster.epoch = await _next_epoch(store)
    cluster.nodes = {node.id: node for node in await repository.nodes(store)}
    for placement in await _take_over(store, effects, cluster.epoch):
        cluster.add(placement)
    _log.info("leading", epoch=cluster.epoch, nodes=len(cluster.nodes), placements=len(cluster.placements))
    try:
        yield
    finally:
        await waiting.close()
        await placer.close()


async def _next_epoch(store: Store) -> int:
    try:
        taken = await store.update(LEASE, LEADER, lambda found: (found.next(epoch=found.epoch + 1), ()))
    except NotFound:
        taken = await store.insert(LEASE, Leadership(id=LEADER, epoch=1))
    return taken.epoch


async def _take_over(store: Store, effects: Effects, epoch: int) -> list[Placement]:
    """Bring live placements to this epoch; starts that are not confirmed are sent anew under it."""
    taken = [after for found in await repository.live(store) if (after := machine.led(found, epoch))]
    for start in range(0, len(taken), BATCH):
        batch = taken[start : start + BATCH]
        writes = [Write(PLACEMENTS, each.id, each.revision - 1, each, _commands(effects, each)) for each in batch]
        for fault in await store.write(*writes):
            if fault:
                raise fault
    return taken


def _commands(effects: Effects, placement: Placement) -> tuple[Event, ...]:
    return (effects.start(placement),) if placement.state is PlacementState.PLACED else ()
