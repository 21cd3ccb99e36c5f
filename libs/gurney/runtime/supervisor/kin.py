"""Which processes belong to which run.

Whatever a run's processes leave behind when they end becomes our child (we are their subreaper), so the descendants of
the main process and of such orphans are the run. Who an orphan belongs to is told by, in this order: what was seen
before; its session; the run's folder in its environment (the run id alone might be that of another server); and by
elimination when there is one run only. The orphans of adopted runs went to init: for those all of /proc is read.
"""

from __future__ import annotations

import os

from gurney.runtime.supervisor import procfs, records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gurney.runtime.supervisor.run import Run


class Kin:
    def __init__(self, runs: dict[str, Run]) -> None:
        self._runs = runs
        self._owners: dict[tuple[int, int], str] = {}

    def refresh(self, run: Run, *, search: bool = True) -> dict[int, int]:
        """Return the live processes of the run by start time, and remember them as its members.

        Without `search` the costly look through /proc for orphans of an adopted run is left out.
        """
        roots = [run.pid] if run.running else []
        roots += [pid for pid, started in run.members.items() if procfs.ticks(pid) == started]
        roots += [pid for pid, owner in self._orphans().items() if owner == run.id]
        if run.adopted and search:
            roots += [pid for pid in procfs.pids() if self._claims(run, pid)]
        run.members = {pid: started for pid in procfs.descendants(roots) if (started := procfs.ticks(pid))}
        return run.members

    def owner(self, pid: int) -> Run | None:
        """Return the run of which the process was a member when it was last seen."""
        return next((run for run in self._runs.values() if pid in run.members), None)

    def strays(self) -> dict[int, int]:
        """Return our children that are no run's main process, by start time."""
        mains = {run.pid for run in self._runs.values() if run.running}
        return {
            pid: started for pid in procfs.children(os.getpid()) if pid not in mains and (started := procfs.ticks(pid))
        }

    def _orphans(self) -> dict[int, str]:
        strays = self.strays()
        known = self._owners
        self._owners = {
            (pid, started): owner
            for pid, started in strays.items()
            if (owner := known.get((pid, started)) or self._owner(pid, started))
        }
        return {pid: owner for (pid, _), owner in self._owners.items()}

    def _owner(self, pid: int, started: int) -> str | None:
        for run in self._runs.values():
            if run.members.get(pid) == started or self._claims(run, pid):
                return run.id
        return next(iter(self._runs)) if len(self._runs) == 1 else None

    def _claims(self, run: Run, pid: int) -> bool:
        found = procfs.stat(pid)
        if found is None or not found.alive or pid == os.getpid():
            return False
        return found.session == run.pid or procfs.has_variable(pid, records.token(run.id))
