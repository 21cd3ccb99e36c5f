"""Writes placements and keeps memory in step: what is decided about a run is written by compare-and-set here."""

from collections.abc import Callable, Sequence

from gurney import clock
from gurney.documents.port import Write
from gurney.errors import RevisionConflict
from gurney.model.event import Event
from gurney.model.run import Placement, PlacementState
from services.scheduler import machine
from services.scheduler.office import Office
from services.scheduler.repository import PLACEMENTS

Decide = Callable[[Placement], Placement | None]
Commands = Callable[[Placement], Sequence[Event]]


def no_commands(_: Placement) -> Sequence[Event]:
    return ()


class Ledger:
    """`on_room` is called whenever room has become free; who waits no more may have kept some."""

    def __init__(self, office: Office, on_room: Callable[[], None]) -> None:
        self._store = office.store
        self._tenure = office.tenure
        self._cluster = office.cluster
        self._presence = office.presence
        self._effects = office.effects
        self.on_room = on_room

    async def change(self, run_id: str, decide: Decide, commands: Commands = no_commands) -> Placement:
        """Change a placement, with the events that tell of it and the commands that follow; raises `NotFound`.

        Returns the placement as it is then, changed or not. One that a newer leader has taken over raises `Deposed`;
        whatever is decided about it here, after however long a pause, its revision is another by then.
        """

        def change(before: Placement) -> tuple[Placement, Sequence[Event]] | None:
            self._tenure.check_epoch(before.epoch)
            after = decide(before)
            return None if after is None else (after, [*self._effects.news(before, after), *commands(after)])

        placement = await self._store.update(PLACEMENTS, run_id, change)
        self._follow(placement)
        return placement

    async def insert(self, placement: Placement) -> bool:
        """Write a placement that is over from the start; tells False where the run has one."""
        try:
            await self._store.insert(PLACEMENTS, placement, *self._effects.news(None, placement))
        except RevisionConflict:
            return False
        return True

    async def reserve(self, placement: Placement) -> Placement | None:
        """Write a reservation; returns what the run has then, None where that is over.

        Its room is taken before the write is under way, and given back where the write fails.
        """
        self.decided(placement)
        try:
            return await self._store.insert(PLACEMENTS, placement)
        except RevisionConflict:
            return await self.reread(placement.id)
        except BaseException:
            self._give_up(placement.id)
            raise

    async def remove(self, placements: Sequence[Placement]) -> None:
        """Remove placements that nobody needs any more; those that have changed stay."""
        writes = [Write(PLACEMENTS, each.id, each.revision, None) for each in placements]
        for write, fault in zip(writes, await self._store.write(*writes), strict=True):
            if fault is None:
                self._give_up(write.id)
            elif not isinstance(fault, RevisionConflict):
                raise fault

    async def reread(self, run_id: str) -> Placement | None:
        """Bring memory in step with what is written about a run; returns its live placement.

        A former leader may have written it after it was one: then it is taken over.
        """
        found = await self._store.documents.get(PLACEMENTS, run_id)
        if found is not None and found.live:
            found = await self.change(run_id, lambda each: machine.led(each, self._cluster.epoch), self._anew)
        if found is None or not found.live:
            self._give_up(run_id)
            return None
        self.decided(found)
        return found

    def _anew(self, placement: Placement) -> Sequence[Event]:
        return [self._effects.start(placement)] if placement.state is PlacementState.PLACED else []

    def decided(self, placement: Placement) -> None:
        """Take a live placement into memory."""
        self._cluster.add(placement)
        self._presence.written(placement.id, clock.monotonic())

    def _follow(self, placement: Placement) -> None:
        known = self._cluster.placements.get(placement.id)
        if known is None or known.revision < placement.revision:
            self._presence.written(placement.id, clock.monotonic())
        if self._cluster.put(placement):
            self.on_room()

    def _give_up(self, run_id: str) -> None:
        if run_id in self._cluster.placements:
            self._cluster.forget(run_id)
            self.on_room()
