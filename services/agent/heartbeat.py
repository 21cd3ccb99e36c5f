"""Shows the scheduler that this node is there, what it has and which runs it knows."""

import asyncio
from typing import Self

from gurney import clock, telemetry
from gurney.errors import GurneyError
from gurney.model.run import Heartbeat
from services.agent.claim import Claim, NodeTaken
from services.agent.host import Host
from services.agent.identity import Identity
from services.agent.patience import Crew
from services.agent.supervisor import Supervisor

_RETRY_S = 0.5
#: Seconds for which heartbeats may fail before that is worth telling.
_QUIET_S = 10.0

_log = telemetry.log("agent")


class Heart:
    """Beats at once, then every interval, and whenever it is asked to. One per start of the agent."""

    def __init__(self, host: Host, supervisor: Supervisor, identity: Identity, claim: Claim) -> None:
        self._host = host
        self._settings = host.settings
        self._supervisor = supervisor
        self._identity = identity
        self._claim = claim
        self._wake = asyncio.Event()
        self._renewing = Crew()
        #: When the last heartbeat held, or the first was tried; and whether was told that none did since.
        self._beaten_at = clock.monotonic()
        self._told = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._renewing.dismiss()

    async def soon(self) -> None:
        """Beat now: the connection or a stream is new, and what was said may be gone."""
        self._wake.set()

    async def beat(self) -> None:
        """Beat for ever. The runs of before were found again when this begins."""
        while True:
            self._wake.clear()
            pause = self._settings.heartbeat_interval
            try:
                await self._beat()
            except NodeTaken as error:
                _log.error("node id is taken", error=error)
                self._supervisor.is_refused = True
            except GurneyError as error:  # whatever the reason: the next beat is the remedy
                self._tell(error)
                pause = min(pause, _RETRY_S)
            else:
                self._beaten_at, self._told = clock.monotonic(), False
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _tell(self, error: GurneyError) -> None:
        """Tell once of a silence that lasts: at the start and after a wipe the stream is there in a moment."""
        if not self._told and clock.monotonic() - self._beaten_at >= _QUIET_S:
            self._told = True
            _log.warning("heartbeats fail", error=error)

    async def _beat(self) -> None:
        """Beat once. What is named lives on, counted from before the heartbeat was sent, once JetStream has it."""
        beat, sent = self._heartbeat(), clock.monotonic()
        await self._host.effects.beat(beat, self._claim)
        self._supervisor.is_refused = False
        if beat.lease is not None and beat.runs:  # nobody waits: a runtime that is away keeps no heartbeat back
            self._renewing.start(self._supervisor.renew(beat.runs, sent), "leases")

    def _heartbeat(self) -> Heartbeat:
        gpus = self._host.gpus.now(self._supervisor.held_gpus)
        return Heartbeat(
            node=self._settings.node,
            incarnation=self._identity.incarnation,
            home=self._identity.home,
            epoch=self._host.journal.epoch,
            lease=self._host.leases.seconds,
            at=clock.now(),
            simulated=self._host.gpus.simulated,
            capacity=self._supervisor.capacity.but(gpus=len(gpus)),
            gpus=gpus,
            gpu_sharing=self._settings.gpu_sharing,
            kinds=self._supervisor.kinds,
            faults=(
                *self._supervisor.faults,
                *self._host.gpus.faults,
                *self._host.meter.faults,
                *self._host.probes.faults,
            ),
            images=self._host.holdings.told,
            runs=self._supervisor.run_ids,
        )
