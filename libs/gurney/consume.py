"""A durable pull consumer: messages are worked on at once, in order per id, and acknowledged when their work is safe.

What a handler raises decides: nothing, acknowledged; `Reject` or undecodable, a dead letter and `+TERM`; anything else,
the message comes again with back-off. Delivery counts only pace the back-off.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy
from pydantic import ValidationError

from gurney import telemetry
from gurney.bus import Bus
from gurney.connection import AWAY
from gurney.errors import NatsUnavailable
from gurney.streams import Consumer
from gurney.subjects import shape_of
from gurney.tasks import checkpoint
from gurney.traceparent import is_traceparent, link_to
from gurney.tracing import Span

#: Takes subject and data.
Handle = Callable[[str, bytes], Awaitable[None]]

PULL_S = 30.0
IDLE_HEARTBEAT_S = 5.0
RETRY_S = 0.5
FIRST_RETRY_S = 0.03
#: Tokens of `$JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>.<consumer sequence>.<time>.<pending>`.
_TOKENS = 9

_log = telemetry.log("consume")


class Reject(Exception):
    """This message can never succeed: it becomes a dead letter."""


async def ensure(bus: Bus, consumer: Consumer) -> ConsumerInfo:
    """Make a consumer where it is missing; raises `NatsUnavailable`.

    Its filter stands in the subject of the request, so that permissions can tell who may consume what.
    """
    wanted = ConsumerConfig(
        name=consumer.durable,
        durable_name=consumer.durable,
        filter_subject=consumer.filter,
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=consumer.ack_wait,
        max_deliver=-1,
        max_ack_pending=consumer.in_flight,
    )
    try:
        info = await bus.js.add_consumer(consumer.stream, wanted)
    except (*AWAY, nats.errors.Error) as error:
        raise NatsUnavailable(f"cannot make the consumer {consumer.durable}: {error!r}") from error
    checkpoint()
    return info


async def look(bus: Bus, consumer: Consumer) -> ConsumerInfo:
    """Return what another service has made; raises `NatsUnavailable`, too, while it is not there."""
    try:
        info: ConsumerInfo = await bus.js.consumer_info(consumer.stream, consumer.durable)
    except (*AWAY, nats.errors.Error) as error:
        raise NatsUnavailable(f"the consumer {consumer.durable} is not there: {error!r}") from error
    checkpoint()
    return info


async def remove(bus: Bus, consumer: Consumer) -> None:
    """Remove a consumer, if it is there; raises `NatsUnavailable`."""
    try:
        await bus.js.delete_consumer(consumer.stream, consumer.durable)
    except nats.js.errors.NotFoundError:
        return
    except (*AWAY, nats.errors.Error) as error:
        raise NatsUnavailable(f"cannot remove the consumer {consumer.durable}: {error!r}") from error
    checkpoint()


class Puller:
    """Runs one consumer until cancelled; makes it again when it is gone and then calls `renewed`.

    A consumer that another service makes is waited for.
    """

    def __init__(self, bus: Bus, consumer: Consumer, handle: Handle, renewed: Callable[[], None]) -> None:
        self._bus = bus
        self._consumer = consumer
        self._handle = handle
        self._renewed = renewed
        self._created: object = None
        self._tails: dict[str, asyncio.Task[None]] = {}
        self._working: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Event()
        self._owed = 0
        self._broken = False

    async def run(self) -> None:
        """Pull for ever; on cancellation, finish what was begun."""
        inbox = self._bus.raw.new_inbox()
        subscription = await self._bus.raw.subscribe(inbox, cb=self._on_message)
        self._bus.on_reconnect.append(self._break)
        pause = FIRST_RETRY_S
        try:
            while True:
                try:
                    await self.ensure()
                    pause = FIRST_RETRY_S
                    await self._pull(inbox)
                except (*AWAY, nats.errors.Error, NatsUnavailable) as error:
                    _log.debug("consumer waits", consumer=self._consumer.durable, error=error)
                    await asyncio.sleep(pause)
                    pause = min(RETRY_S, 2 * pause)
        finally:
            self._bus.on_reconnect.remove(self._break)
            with contextlib.suppress(*AWAY, nats.errors.Error):
                await subscription.unsubscribe()
            if self._working:
                await asyncio.wait(self._working, timeout=10)

    async def ensure(self) -> None:
        """Make the consumer where it is missing, or find it."""
        find = ensure if self._consumer.maker == self._consumer.service else look
        info = await find(self._bus, self._consumer)
        if info.created != self._created:
            self._created = info.created
            self._renewed()

    async def _pull(self, inbox: str) -> None:
        """Keep one request for messages open, until it breaks."""
        self._broken = False
        self._owed = 0
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._consumer.stream}.{self._consumer.durable}"
        request = {
            "batch": self._consumer.in_flight,
            "expires": int(PULL_S * 1e9),
            "idle_heartbeat": int(IDLE_HEARTBEAT_S * 1e9),
        }
        body = json.dumps(request).encode()
        while not self._broken:
            if self._owed <= 0:
                self._owed = self._consumer.in_flight
                await self._bus.raw.publish(subject, body, inbox)
            self._arrived.clear()
            try:
                async with asyncio.timeout(2 * IDLE_HEARTBEAT_S + 1):
                    await self._arrived.wait()
            except TimeoutError:
                return

    async def _on_message(self, message: Msg) -> None:
        if message.reply.startswith("$JS.ACK."):
            self._take(message)
        else:
            self._on_status((message.headers or {}).get("Status"))

    def _on_status(self, status: str | None) -> None:
        match status:
            case "100":  # idle heartbeat
                pass
            case "408" | "404":  # the request has expired
                self._owed = 0
            case _:  # the consumer is gone, or nobody answers
                self._break()
        self._arrived.set()

    def _break(self) -> None:
        self._broken = True
        self._arrived.set()

    def _take(self, message: Msg) -> None:
        self._owed -= 1
        if self._owed <= 0:
            self._arrived.set()
        key = message.subject.rpartition(".")[2]
        task = asyncio.create_task(self._work(message, self._tails.get(key)))
        self._tails[key] = task
        self._working.add(task)
        task.add_done_callback(lambda done: self._finished(key, done))

    def _finished(self, key: str, task: asyncio.Task[None]) -> None:
        self._working.discard(task)
        if self._tails.get(key) is task:
            del self._tails[key]

    async def _work(self, message: Msg, before: asyncio.Task[None] | None) -> None:
        if before:
            await asyncio.wait([before])
        with self._span_of(message) as span, contextlib.suppress(nats.errors.Error, OSError):
            result = await self._handled(message, span)
            telemetry.MESSAGES.labels(self._consumer.durable, result).inc()
            _log.debug("consumed", service=self._bus.service, subject=message.subject, result=result)

    def _span_of(self, message: Msg) -> Span:
        """Return the span of a delivery. A repeated one links to the one before: its id follows from the message."""
        headers, consumer = message.headers or {}, self._consumer
        parent = headers.get("traceparent")
        sequence, delivery = _delivery(message.reply)
        key = f"{consumer.stream}/{consumer.durable}/{sequence}/"
        repeated = delivery > 1 and is_traceparent(parent)
        kind, _ = shape_of(message.subject)
        attributes = {
            "messaging.system": "nats",
            "messaging.operation.name": "process",
            "messaging.message.id": headers.get("Nats-Msg-Id", ""),
        }
        return telemetry.span(
            f"process {kind}",
            telemetry.CONSUMER,
            parent,
            service=self._bus.service,
            about=message.subject.rpartition(".")[2],
            attributes={**attributes, "gurney.delivery": delivery} if delivery > 1 else attributes,
            links=[link_to(parent, f"{key}{delivery - 1}")] if parent and repeated else (),
            key=f"{key}{delivery}",
            quiet=delivery == 1 and consumer.traced is not None and kind not in consumer.traced,
        )

    async def _handled(self, message: Msg, span: Span) -> str:
        try:
            await self._handle(message.subject, message.data)
        except (Reject, ValidationError) as error:
            span.failed(error)
            await self._bury(message, error)
            return "dead"
        except Exception as error:
            span.failed(error)
            delivered = message.metadata.num_delivered or 1
            _log.warning("message comes again", consumer=self._consumer.durable, subject=message.subject, error=error)
            await message.nak(delay=min(30.0, 0.05 * 2 ** min(delivered, 12)))
            return "again"
        await message.ack()
        return "done"

    async def _bury(self, message: Msg, error: Exception) -> None:
        """Keep a dead letter, then end the message: the server publishes its advisory."""
        reason = str(error)
        _log.error("dead letter", consumer=self._consumer.durable, subject=message.subject, error=error)
        headers = {key: value for key, value in (message.headers or {}).items() if not key.startswith("Nats-")}
        headers |= {"gurney-subject": message.subject, "gurney-reason": reason.replace("\n", " ")[:512]}
        subject = f"dead.{self._consumer.stream}.{self._consumer.durable}"
        await self._bus.js.publish(subject, message.data, headers=headers)
        await self._bus.raw.publish(message.reply, b"+TERM " + headers["gurney-reason"].encode())


def _delivery(reply: str) -> tuple[str, int]:
    """Return a message's sequence in its stream and how often it was delivered, from its reply subject (ADR-15)."""
    tokens = reply.split(".")
    at = 4 if len(tokens) == _TOKENS else 6  # the longer form begins with domain and account
    return tokens[at + 1], int(tokens[at])
