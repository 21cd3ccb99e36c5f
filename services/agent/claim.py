"""The node's key in the bucket of heartbeats: only one agent writes it, so that no two are the same node."""

import asyncio
from typing import Self

from gurney import telemetry
from gurney.errors import Conflict, NatsUnavailable
from gurney.heartbeats import Heartbeats, Kept, Taken
from gurney.model.event import Event
from gurney.model.run import Heartbeat
from services.agent.identity import Identity
from services.agent.policy import may_claim

#: Seconds between two looks at a key that another agent has written.
LOOK_S = 0.5
#: How often a write is tried whose key has changed under it.
TRIES = 3

_log = telemetry.log("agent")


class NodeTaken(Conflict):
    """Another agent, alive, has this node id."""


class Claim:
    """A context: it is entered when no other agent that is alive has the node id."""

    def __init__(self, heartbeats: Heartbeats, node: str, identity: Identity) -> None:
        self._heartbeats = heartbeats
        self._node = node
        self._identity = identity
        #: The key's sequence as far as we know; 0: it is not there.
        self._sequence = 0
        #: JetStream has had a heartbeat of ours.
        self._has_beaten = False

    async def __aenter__(self) -> Self:
        """Wait until a former agent's key has lapsed; raises `NodeTaken` at its next heartbeat."""
        first: int | None = None
        while (kept := await self._read()) is not None:
            if self._may_claim(kept.beat):
                self._sequence = kept.sequence
                break
            if first is None:
                _log.info("another agent had this node id: waits until it has not been heard of", node=self._node)
                first = kept.sequence
            elif kept.sequence != first:
                raise self._taken()
            await asyncio.sleep(LOOK_S)
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def put(self, event: Event) -> None:
        """Write a heartbeat; returns when JetStream has it. Raises `NodeTaken`, `NatsUnavailable`."""
        for _ in range(TRIES):
            try:
                self._sequence = await self._heartbeats.put(event, self._sequence)
            except Taken:
                kept = await self._heartbeats.read(self._node)
                if kept is not None and not self._may_claim(kept.beat):
                    raise self._taken() from None
                self._sequence = kept.sequence if kept else 0
            else:
                self._has_beaten = True
                return
        raise NatsUnavailable("the heartbeat's key changes all the time")

    async def _read(self) -> Kept | None:
        try:
            return await self._heartbeats.read(self._node)
        except NatsUnavailable as error:  # the bucket may not be there yet; the heartbeats will tell
            _log.debug("the node's key cannot be read", error=error)
            return None

    def _may_claim(self, beat: Heartbeat | None) -> bool:
        return may_claim(beat, self._identity.home, self._identity.incarnation, has_beaten=self._has_beaten)

    def _taken(self) -> NodeTaken:
        return NodeTaken(f"another agent that is alive is node {self._node}: give one of the two another GURNEY_NODE")
