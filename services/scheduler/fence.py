"""Ends runs that a node has and that are over: another attempt may run elsewhere by now.

A host that was frozen, or that was cut off without anybody there to end its runs, comes back with them alive. What they
make is bound to nothing; here their room becomes free again.
"""

from collections.abc import Collection

from gurney import ids, telemetry
from gurney.model.job import JobRefs
from gurney.model.run import Heartbeat
from gurney.subjects import JOB_ALIVE
from services.scheduler import census
from services.scheduler.office import Office
from services.scheduler.repository import PLACEMENTS

_log = telemetry.log("scheduler")


class Fence:
    """One per tenure."""

    def __init__(self, office: Office) -> None:
        self._bus = office.bus
        self._store = office.store
        self._cluster = office.cluster
        self._effects = office.effects

    async def look(self, beat: Heartbeat, before: Collection[str]) -> None:
        """Stop the runs of a node that it named before, too, and that are over as documents have it.

        A run that ended a moment ago is named once more at most. What documents do not know and what a former leader
        may be writing is left alone, as long as its job may still need it.
        """
        strays = [run_id for run_id in beat.runs if run_id in before and not self._is_there(run_id, beat.node)]
        if not strays:
            return
        found = {each.id: each for each in await self._store.documents.get_many(PLACEMENTS, strays)}
        jobs = tuple({ids.split_run_id(run_id)[0] for run_id in strays if run_id not in found})
        alive = (await self._bus.request(JOB_ALIVE, JobRefs(jobs=jobs))).live if jobs else ()
        over = [
            run_id
            for run_id in strays
            if (census.is_over(found[run_id], beat.node) if run_id in found else not _is_of(run_id, alive))
        ]
        if over:
            _log.warning("runs that are over are ended", node=beat.node, runs=over)
            await self._effects.offer([self._effects.fence(each, beat.node, self._cluster.epoch) for each in over])

    def _is_there(self, run_id: str, node: str) -> bool:
        known = self._cluster.placements.get(run_id)
        return known is not None and known.node == node


def _is_of(run_id: str, jobs: Collection[str]) -> bool:
    return ids.split_run_id(run_id)[0] in jobs
