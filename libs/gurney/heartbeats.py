"""The key-value bucket `heartbeats`: one key per node, which lapses by itself.

Not the client's `kv()`: that one cannot tell a key that lapsed from one that is there. A key is written by
compare-and-set on its sequence, so of two agents with one node id only one can: `Taken` tells the other. It is read
from the stream's leader, never from a replica that lags behind; but an agent may read its own key only, which no
request to the leader can be held to: what it reads late, its next write corrects.
"""

from dataclasses import dataclass
from datetime import datetime

import nats.errors
import nats.js.errors
from pydantic import ValidationError

from gurney.bus import Bus, event_headers
from gurney.connection import AWAY
from gurney.errors import Conflict, NatsUnavailable
from gurney.model.event import Event
from gurney.model.run import Heartbeat
from gurney.subjects import AGENT, HEARTBEAT
from gurney.tasks import checkpoint

STREAM = "KV_heartbeats"
WRONG_SEQUENCE = 10071
#: JetStream's code for a stream that does not exist; a message that does not has another.
NO_STREAM = 10059
EXPECTED = "Nats-Expected-Last-Subject-Sequence"


class Taken(Conflict):
    """Somebody else has written the key meanwhile."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What lies under a key: `beat` None where it was deleted, or is none."""

    sequence: int
    beat: Heartbeat | None


class Heartbeats:
    """The bucket, over one service's connection."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def put(self, event: Event, expected: int) -> int:
        """Write a key that must be at this sequence (0: not there); return its sequence when JetStream has it.

        Raises `Taken`, or `NatsUnavailable` when nothing is known to be written.
        """
        headers = {**event_headers(event), EXPECTED: str(expected)}
        try:
            answer = await self._bus.js.publish(event.subject, event.body.encode(), headers=headers)
        except nats.js.errors.APIError as error:
            if error.err_code == WRONG_SEQUENCE:
                raise Taken(f"{event.subject} was written by somebody else") from error
            raise NatsUnavailable(f"{event.subject}: {error!r}") from error
        except (*AWAY, nats.errors.Error) as error:
            raise NatsUnavailable(f"{event.subject}: {error!r}") from error
        checkpoint()
        return answer.seq

    async def read(self, node: str) -> Kept | None:
        """Return what lies under a node's key; None where nothing does. Raises `NatsUnavailable`."""
        try:
            direct = self._bus.service == AGENT
            message = await self._bus.js.get_last_msg(STREAM, HEARTBEAT.of(node_id=node), direct=direct)
        except nats.js.errors.NotFoundError as error:
            if error.err_code == NO_STREAM:
                raise NatsUnavailable("the stream of the heartbeats is gone") from error
            return None
        except (*AWAY, nats.errors.Error) as error:
            raise NatsUnavailable(f"cannot read the heartbeat of {node}: {error!r}") from error
        checkpoint()
        return Kept(message.seq or 0, _decoded(message.data))

    async def created(self) -> datetime | None:
        """Return when the bucket was made, which a wipe changes; raises `NatsUnavailable`."""
        try:
            info = await self._bus.js.stream_info(STREAM)
        except (*AWAY, nats.errors.Error) as error:
            raise NatsUnavailable(f"cannot read the stream of the heartbeats: {error!r}") from error
        checkpoint()
        return info.created


def _decoded(data: bytes | None) -> Heartbeat | None:
    try:
        return Heartbeat.decode(data or b"")
    except ValidationError:
        return None
