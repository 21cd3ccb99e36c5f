"""Reads a stream in order from a point on, for whoever watches, at the pace of who reads.

Behind it is an ephemeral pull consumer without acknowledgements: a position, nothing else. At most one batch lies here,
so a slow reader costs nobody memory. When connection, stream or consumer break, or a message is missed, the feed ends
with `NatsUnavailable`; who watches begins a new one after the last sequence that he saw.
"""

import asyncio
import contextlib
import json
from collections import deque
from dataclasses import dataclass
from typing import Self

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from gurney.bus import Bus
from gurney.clock import EPOCH, monotonic
from gurney.connection import AWAY
from gurney.errors import NatsUnavailable
from gurney.tasks import checkpoint

#: Messages asked for at once.
BATCH = 32
PULL_S = 30.0
IDLE_HEARTBEAT_S = 3.0
#: The server forgets a feed that asks for nothing for so long: its reader is gone, or stuck.
INACTIVE_S = 60.0


@dataclass(frozen=True, slots=True)
class Extent:
    """What a stream holds now. Another `epoch` is another stream, whose sequences begin anew."""

    epoch: int
    first: int
    last: int

    def resumes(self, sequence: int) -> bool:
        """Tell whether nothing is missing between `sequence` and what the stream still holds."""
        return self.first - 1 <= sequence <= self.last


async def extent(bus: Bus, stream: str) -> Extent:
    """Return what a stream holds; its epoch is its `created` time in microseconds."""
    try:
        info = await bus.js.stream_info(stream)
    except (*AWAY, nats.js.errors.Error) as error:
        raise NatsUnavailable(f"stream {stream}: {error!r}", retry_after_s=1) from error
    checkpoint()
    epoch = round((info.created - EPOCH).total_seconds() * 1e6) if info.created else 0
    return Extent(epoch, info.state.first_seq, info.state.last_seq)


async def last_sequence(bus: Bus, stream: str, subject: str) -> int | None:
    """Return the sequence of a subject's last message, None where the stream holds none."""
    try:
        found = await bus.js.get_last_msg(stream, subject)
    except nats.js.errors.NotFoundError:
        return None
    except (*AWAY, nats.js.errors.Error) as error:
        raise NatsUnavailable(f"stream {stream}: {error!r}", retry_after_s=1) from error
    checkpoint()
    return found.seq


@dataclass(frozen=True, slots=True)
class Item:
    """A message of a stream."""

    sequence: int
    subject: str
    data: bytes


class Feed:
    """A reader, as a context. `after` is the last sequence that is not wanted; 0 reads from the oldest on."""

    def __init__(self, bus: Bus, stream: str, subject: str = ">", *, after: int = 0) -> None:
        self._bus = bus
        self._stream = stream
        self._subject = subject
        self._after = after
        self._consumer = ""
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._ready: deque[Item] = deque()
        self._arrived = asyncio.Event()
        self._owed = 0
        self._seen = 0
        self._alive = 0.0
        self._lost: str | None = None
        self._woken = False
        #: Messages that the stream holds for this feed beyond the last one that came here.
        self.pending = 0

    async def __aenter__(self) -> Self:
        policy = DeliverPolicy.BY_START_SEQUENCE if self._after else DeliverPolicy.ALL
        wanted = ConsumerConfig(
            deliver_policy=policy,
            opt_start_seq=self._after + 1 if self._after else None,
            filter_subjects=None if self._subject == ">" else [self._subject],
            ack_policy=AckPolicy.NONE,
            inactive_threshold=INACTIVE_S,
            mem_storage=True,
            num_replicas=1,
        )
        try:
            info = await self._bus.js.add_consumer(self._stream, wanted)
        except (*AWAY, nats.js.errors.Error) as error:
            raise NatsUnavailable(f"stream {self._stream}: {error!r}", retry_after_s=1) from error
        checkpoint()  # what was made goes by itself
        self._consumer, self.pending = info.name, info.num_pending or 0
        self._inbox = self._bus.raw.new_inbox()
        self._subscription = await self._bus.raw.subscribe(self._inbox, cb=self._on_message)
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(*AWAY, nats.errors.Error):
            if self._subscription:
                await self._subscription.unsubscribe()
            # Nobody waits for the answer: should it get lost, the server forgets the consumer by itself.
            await self._bus.raw.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._consumer}", b"")

    def wake(self) -> None:
        """Let `next` return None at once: its reader has something else to look at."""
        self._woken = True
        self._arrived.set()

    @property
    def drained(self) -> bool:
        """Whether all that the stream held so far was read."""
        return not self._ready and not self.pending

    async def next(self, within: float) -> Item | None:
        """Return the next message; None where none comes within these seconds. Raises `NatsUnavailable`."""
        until = monotonic() + within
        while True:
            if self._woken or (not self._ready and monotonic() >= until):
                self._woken = False
                return None
            if self._ready:
                return self._ready.popleft()
            if self._lost:
                raise NatsUnavailable(f"stream {self._stream}: {self._lost}", retry_after_s=1)
            if self._owed <= 0:
                await self._pull()
            await self._wait(until - monotonic())

    def next_now(self) -> Item | None:
        """Return the next message if it lies here."""
        return self._ready.popleft() if self._ready else None

    async def _wait(self, seconds: float) -> None:
        patience = self._alive + 2 * IDLE_HEARTBEAT_S + 1 - monotonic()
        try:
            async with asyncio.timeout(max(0, min(seconds, patience))):
                await self._arrived.wait()
                self._arrived.clear()
        except TimeoutError:
            if patience <= seconds:
                self._lost = "it does not answer"

    async def _pull(self) -> None:
        self._owed = BATCH
        self._alive = monotonic()
        request = {"batch": BATCH, "expires": int(PULL_S * 1e9), "idle_heartbeat": int(IDLE_HEARTBEAT_S * 1e9)}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
        try:
            await self._bus.raw.publish(subject, json.dumps(request).encode(), self._inbox)
        except (*AWAY, nats.errors.Error) as error:
            self._lost = repr(error)

    async def _on_message(self, message: Msg) -> None:
        self._alive = monotonic()
        if message.reply.startswith("$JS.ACK."):
            self._take(message)
        else:
            self._on_status(message.headers or {})
        self._arrived.set()

    def _take(self, message: Msg) -> None:
        metadata = message.metadata
        self._owed -= 1
        self._seen += 1
        if metadata.sequence.consumer != self._seen:
            self._lost = "a message was missed"
        if self._lost is None:
            self.pending = metadata.num_pending
            self._ready.append(Item(metadata.sequence.stream, message.subject, message.data))

    def _on_status(self, headers: dict[str, str]) -> None:
        match headers.get("Status"):
            case "100":  # idle heartbeat
                pass
            case "408" | "404":  # the request has expired
                self._owed = 0
            case status:
                self._lost = headers.get("Description") or f"status {status}"
