"""Several schedulers over one nats-server and one store, of which a test starts and stops each.

A former leader that was frozen, or whose clock stands still, is played by one whose term is so long that it does not
renew, and whose lease the test gives up in its stead: it goes on to believe that it leads, and does what a leader does.
"""

import contextlib
from typing import Any, Self

import pytest

from gurney.documents.port import Documents, Write
from gurney.errors import Unavailable
from gurney.model.run import Confirm, Leadership, NodeList, StartRun
from gurney.service import Service
from gurney.settings import Settings
from gurney.subjects import SCHEDULER_CONFIRM, SCHEDULER_NODES
from services.scheduler import campaign
from services.scheduler.__main__ import build
from services.scheduler.admission import AdmissionDesk
from services.scheduler.cluster import Cluster
from services.scheduler.history import History
from services.scheduler.lease import LEADER
from services.scheduler.reconcile import Reconcile
from services.scheduler.repository import LEASE
from services.scheduler.tenure import Tenure
from tests.service.scheduler_world import World

#: So long that nothing in a test comes from its lapse.
LONG_S = 600.0


class Rival:
    """One scheduler: what a test sees of it from outside, and of its present tenure from inside."""

    def __init__(self, settings: Settings, documents: Documents, term: float) -> None:
        self.service: Service = build(settings.model_copy(update={"leader_term": term}), documents=documents)
        self._stack = contextlib.AsyncExitStack()
        #: The newest tenure, and who does the work in it.
        self.tenure = Tenure()
        self.reconcile: Reconcile | None = None
        self._history: History | None = None

    async def start(self) -> Self:
        await self._stack.enter_async_context(self.service)
        return self

    async def stop(self) -> None:
        """End it as SIGTERM does."""
        await self._stack.aclose()

    @property
    def desk(self) -> AdmissionDesk:
        assert self.reconcile
        return self.reconcile._desk

    @property
    def history(self) -> History:
        assert self._history
        return self._history

    @property
    def cluster(self) -> Cluster:
        assert self.reconcile
        return self.reconcile._cluster


def noted_rivals(monkeypatch: pytest.MonkeyPatch) -> dict[Service, Rival]:
    """The schedulers of a test by their service; each tenure is noted when it begins."""
    known: dict[Service, Rival] = {}
    real = campaign.Campaign._lead

    async def noted(self: campaign.Campaign, tenure: Tenure, mine: Leadership) -> None:
        rival = known.get(self._service)
        make = self._parts

        def parts(tenure: Tenure) -> Any:
            made = make(tenure)
            if rival and isinstance(made.reconcile, Reconcile):
                rival.reconcile, made.reconcile = made.reconcile, None
                rival._history = next(each for each in made.resources if isinstance(each, History))
            return made

        if rival:
            rival.tenure = tenure
        self._parts = parts
        try:
            await real(self, tenure, mine)
        finally:
            self._parts = make

    monkeypatch.setattr(campaign.Campaign, "_lead", noted)
    return known


class Rivalry(World):
    """Schedulers that a test starts and stops, and the others of the world."""

    def __init__(self, settings: Settings, documents: Documents, rivals: dict[Service, Rival]) -> None:
        super().__init__(settings, documents, alone=False)
        self._rivals = rivals

    async def rival(self, term: float = LONG_S, documents: Documents | None = None) -> Rival:
        """Start a scheduler; it stands by, or leads when it can."""
        rival = Rival(self.settings, documents or self.documents, term)
        self._rivals[rival.service] = rival
        await self._stack.enter_async_context(contextlib.aclosing(Closing(rival)))
        return await rival.start()

    async def leader(self, term: float = LONG_S, documents: Documents | None = None) -> Rival:
        """Start a scheduler and wait until it leads."""
        before = await self.documents.get(LEASE, LEADER) if self._rivals else None
        rival = await self.rival(term, documents)
        await self.leads(rival, (before.epoch if before else 0) + 1)
        return rival

    async def successor(self) -> Rival:
        """Return a new leader; the former one does not know."""
        await let_go(self)
        rival = await self.rival()
        await self.until(lambda: is_led(rival))
        return rival

    async def leads(self, rival: Rival, epoch: int) -> None:
        """Wait until a scheduler answers at this epoch."""

        async def holds() -> bool:
            try:
                await self.bus.request(SCHEDULER_NODES, NodeList())
            except Unavailable:
                return False
            return rival.tenure.epoch == epoch and rival.tenure.leads

        await self.until(holds)

    async def granted(self, start: StartRun) -> bool:
        """Ask for a confirmation as an agent does: again where nobody, or somebody who does not lead, has answered."""

        async def answered() -> tuple[bool] | None:
            question = Confirm(run_id=start.run_id, node=start.node, epoch=start.epoch)
            with contextlib.suppress(Unavailable):
                return ((await self.bus.request(SCHEDULER_CONFIRM, question)).start,)
            return None

        return (await self.until(answered))[0]


class Closing:
    """Ends a scheduler with the test."""

    def __init__(self, rival: Rival) -> None:
        self._rival = rival

    async def aclose(self) -> None:
        await self._rival.stop()


async def let_go(world: Rivalry) -> None:
    """Give the leader's lease up in its stead."""
    found = await world.documents.get(LEASE, LEADER)
    assert found
    assert await world.documents.cas([Write(LEASE, LEADER, found.revision, found.next(released=True))]) == [None]


async def is_led(rival: Rival) -> bool:
    return rival.tenure.leads and rival.reconcile is not None and rival.cluster.epoch > 0
