"""Until when each run of this host may live, by its monotonic clock. Pure.

A run has a lease from its confirmation on, counted from when that was asked for. A heartbeat that names it and that
JetStream has renews it, counted from when that was sent. What has lapsed is not renewed: the scheduler may have given
the next attempt to another host by then.
"""

from collections.abc import Iterable


class Leases:
    """`seconds`: how long a lease is; None: runs have none, and wait for their agent."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._until: dict[str, float] = {}

    def confirmed(self, run_id: str, asked: float) -> None:
        """Begin the lease of a run that has not started: it may, as a question of then was answered."""
        if self.seconds is not None:
            self._until[run_id] = asked + self.seconds

    def renewed(self, run_ids: Iterable[str], sent: float, now: float) -> float | None:
        """Renew the leases of named runs; returns until when what runs may live. None: there are no leases."""
        if self.seconds is None:
            return None
        until = sent + self.seconds
        for run_id in run_ids:
            if now < self._until.get(run_id, until):
                self._until[run_id] = max(until, self._until.get(run_id, until))
        return until

    def until(self, run_id: str) -> float | None:
        """Return until when a run may live; None: as long as it takes."""
        return self._until.get(run_id)

    def has_lapsed(self, run_id: str, now: float) -> bool:
        return now >= self._until.get(run_id, float("inf"))

    def forget(self, run_id: str) -> None:
        self._until.pop(run_id, None)
