"""NATS as services see it: questions, answers, events and durable consumers, with trace context and errors translated.

Nothing above this module and those beside it (`connection`, `consume`, `feed`, `heartbeats`) knows nats-py, except
`streams`, whose declarations are data of its types.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from nats.micro import add_service
from nats.micro.request import Request
from nats.micro.service import Service as NatsService
from pydantic import ValidationError

from gurney import clock, telemetry
from gurney.connection import AWAY, Connection
from gurney.errors import ErrorBody, Forbidden, GurneyError, Internal, Invalid, NatsUnavailable, TooLate, from_body
from gurney.lateness import HEADER as ASKED
from gurney.lateness import Asker, Askers
from gurney.model.base import Message
from gurney.model.event import SCHEMA, Event
from gurney.settings import Settings
from gurney.streams import STREAMS, Stream
from gurney.subjects import AGENT, Notice, Operation
from gurney.tasks import checkpoint

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)

Answer = Callable[[Any], Awaitable[Message]]

ERROR_CODE = "Nats-Service-Error-Code"
DECLARE_AGAIN_S = 0.1
#: Seconds that open questions get when a service stops.
DRAIN_S = 10.0

_log = telemetry.log("bus")


class Bus:
    """What one service says and hears: over a connection of its own, or over one that a process's services share."""

    def __init__(self, settings: Settings, service: str) -> None:
        self._settings = settings
        self.service = service
        self._connection = Connection(settings, service)
        self._shared = False
        self._answering: set[asyncio.Task[None]] = set()
        self._asker = Asker()
        self._askers = Askers()

    @property
    def connection(self) -> Connection:
        return self._connection

    def share(self, connection: Connection) -> None:
        """Go over a connection that somebody else opens and closes; before `connect`."""
        self._connection = connection
        self._shared = True

    @property
    def raw(self) -> Client:
        """The client itself, for `consume` and `feed`."""
        return self._connection.nats

    @property
    def js(self) -> JetStreamContext:
        return self._connection.js

    @property
    def on_reconnect(self) -> list[Callable[[], None]]:
        """Called after each reconnect."""
        return self._connection.on_reconnect

    async def answers(self, within: float) -> bool:
        """Tell whether the server is there now; a connection alone does not say it: it outlives a frozen server.

        A flush that comes too late would end the client's reading: it sets a future that was given up. A request does
        not, and that nobody is there to answer it is an answer of the server.
        """
        if not self.raw.is_connected:
            return False
        try:
            await self.raw.request(f"$SRV.PING.gurney-{self.service}", timeout=within)
        except nats.errors.NoRespondersError:
            return True
        except (*AWAY, nats.errors.Error):
            return False
        return True

    async def connect(self) -> None:
        """Connect where nobody else did; raises `NatsUnavailable` with one clear line."""
        if not self._shared:
            await self._connection.__aenter__()

    async def drained(self) -> None:
        """Return when the answers that were begun are given, or have had their time."""
        if self._answering:
            await asyncio.wait(self._answering, timeout=DRAIN_S)

    async def close(self) -> None:
        """Disconnect what `connect` connected."""
        if not self._shared:
            await self._connection.__aexit__()

    # --- questions ---

    async def request(self, operation: Operation[Q, R], question: Q, *, within: float | None = None) -> R:
        """Ask and return the answer; raises the error that the owner raised, or `NatsUnavailable`."""
        if not self.raw.is_connected:
            raise NatsUnavailable("the message server is away", retry_after_s=1)
        subject = operation.asked_by(self._settings.node) if self.service == AGENT else operation.subject
        telemetry.about(telemetry.about_of(question))
        data, patience = question.encode(), within or self._settings.request_timeout
        try:
            reply = await self._ask(subject, data, patience)
        except TooLate:  # we still wait
            self._asker.rename()
            reply = await self._ask(subject, data, patience)
        answer = operation.reply.decode(reply)
        telemetry.about(telemetry.about_of(answer))
        return answer

    async def _ask(self, subject: str, data: bytes, patience: float) -> bytes:
        """Return the answer. Its span is the answerer's; only who gets none has one of his own."""
        headers = {ASKED: self._asker.header(patience), **_trace_headers()}
        since = clock.now()
        try:
            reply = await self.raw.request(subject, data, timeout=patience, headers=headers)
        except AWAY as error:
            with telemetry.span(subject, telemetry.CLIENT, service=self.service, since=since):
                raise NatsUnavailable(f"{subject}: no answer ({type(error).__name__})", retry_after_s=1) from error
        checkpoint()
        if reply.headers and ERROR_CODE in reply.headers:
            raise from_body(ErrorBody.model_validate_json(reply.data))
        return reply.data

    async def serve(
        self, answers: Mapping[Operation[Any, Any], Answer], group: str | None = None
    ) -> NatsService | None:
        """Answer questions, each in a task of its own, as a NATS service (`$SRV` discovery, queue group)."""
        if not answers:
            await self.answers(self._settings.request_timeout)  # the server has what we hear
            return None
        service = await add_service(
            self.raw,
            name=f"gurney-{self.service}",
            version="1.0.0",
            description=f"Gurney's {self.service} service",
            queue_group=group,
        )
        for operation, answer in answers.items():
            call = self._answering_task(operation, answer)
            await service.add_endpoint(name=operation.name, subject=operation.subject, handler=call)
            if AGENT in operation.askers:
                name, subject = f"{operation.name}-node", operation.asked_by("*")
                await service.add_endpoint(name=name, subject=subject, handler=call)
        # Whoever asks from now on finds somebody: this comes after the subscriptions, which a flush's ping may not.
        await self.raw.request(f"$SRV.PING.gurney-{self.service}", timeout=self._settings.request_timeout)
        return service

    def _answering_task(self, operation: Operation[Any, Any], answer: Answer) -> Callable[[Request], Awaitable[None]]:
        async def handle(request: Request) -> None:
            task = asyncio.create_task(self._answer(operation, answer, request))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

        return handle

    async def _answer(self, operation: Operation[Any, Any], answer: Answer, request: Request) -> None:
        headers = request.headers or {}
        parent = headers.get("traceparent")
        code = "ok"
        with telemetry.span(
            operation.subject, telemetry.SERVER, parent, service=operation.service, quiet=not operation.traced
        ) as span:
            try:
                if self._askers.is_late(headers.get(ASKED)):
                    raise TooLate(f"{operation.subject}: nobody waits for the answer")
                try:
                    question = operation.request.decode(request.data)
                except ValidationError as error:
                    raise Invalid(f"{operation.subject}: {error}") from error
                if request.subject != operation.subject:
                    check_node(question, node=request.subject.rpartition(".")[2])
                span.about(telemetry.about_of(question))
                reply = await answer(question)
                span.about(telemetry.about_of(reply))
                await request.respond(reply.encode())
            except GurneyError as error:
                code = error.code
                span.failed(error)
                await self._respond_error(request, error)
            except AWAY as error:
                code = "unavailable"
                span.failed(error)
                await self._respond_error(request, NatsUnavailable(f"{operation.subject}: {error!r}", retry_after_s=1))
            except Exception as error:  # the asker must hear of a defect at once
                code = "internal"
                span.failed(error)
                _log.exception("handler failed", operation=operation.subject)
                await self._respond_error(request, Internal(f"{operation.subject} failed"))
            _log.debug("answered", service=operation.service, operation=operation.name, code=code)
        telemetry.REQUESTS.labels(operation.service, operation.name, code).inc()

    async def _respond_error(self, request: Request, error: GurneyError) -> None:
        with contextlib.suppress(nats.errors.Error):
            body = error.body().model_dump_json().encode()
            await request.respond_error(error.code, error.title, body)

    # --- events ---

    async def publish_events(self, events: Sequence[Event], *, within: float = 5.0) -> None:
        """Send events to their streams, in order; returns when JetStream has all, else raises `NatsUnavailable`."""
        try:
            async with asyncio.timeout(within):
                await asyncio.gather(*[await self._publish_event(event) for event in events])
        except (*AWAY, nats.errors.Error) as error:
            raise NatsUnavailable(f"events wait: {error!r}", retry_after_s=1) from error
        checkpoint()

    async def _publish_event(self, event: Event) -> "asyncio.Future[Any]":
        headers = {"Nats-Msg-Id": event.id, **event_headers(event)}
        # `within` bounds the wait for what is under way: a bound of its own takes, on Python 3.11, a task and turns of
        # a busy loop for each event.
        return await self.js.publish_async(event.subject, event.body.encode(), headers=headers, wait_stall=None)

    async def publish(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send without waiting for anybody (core NATS): for what may be lost, as live logs and heartbeats."""
        with contextlib.suppress(nats.errors.Error):
            await self.raw.publish(subject, data, headers=dict(headers or {}) | _trace_headers())

    async def tell_peers(self, notice: Notice) -> None:
        """Tell the other replicas of this service; once this returns the server has it. It may be lost."""
        with contextlib.suppress(*AWAY, nats.errors.Error):
            await self.raw.publish(notice.subject, b"{}")
            # The server takes one after the other: what answers this has the notice behind it.
            await self.raw.request(f"$SRV.PING.gurney-{self.service}", timeout=1)

    async def subscribe(self, subject: str, call: Callable[[Msg], Awaitable[None]]) -> Subscription:
        """Hear a subject as it happens (core NATS)."""
        return await self.raw.subscribe(subject, cb=call)

    @contextlib.asynccontextmanager
    async def hearing(self, subject: str, handle: Callable[[str, bytes], Awaitable[None]]) -> AsyncIterator[None]:
        """Hear a subject as it happens, one message after the other; what `handle` raises is logged."""

        async def call(message: Msg) -> None:
            try:
                await handle(message.subject, message.data)
            except Exception as error:
                _log.warning("not handled", service=self.service, subject=message.subject, error=error)

        subscription = await self.subscribe(subject, call)
        try:
            yield
        finally:
            with contextlib.suppress(*AWAY, nats.errors.Error):
                await subscription.unsubscribe()

    # --- streams ---

    async def declare(self, streams: Sequence[Stream] | None = None) -> None:
        """Make this service's streams where they are missing, and bring their settings up to date.

        Raises `NatsUnavailable`, or `Invalid` where our user may not.
        """
        for stream in streams if streams is not None else [s for s in STREAMS if s.declarer == self.service]:
            try:
                await self._declare(stream.config(self._settings))
            except (*AWAY, nats.js.errors.Error) as error:
                if self._connection.denies(f"$JS.API.STREAM.CREATE.{stream.name}"):
                    raise Invalid(f"NATS does not let this user make the stream {stream.name}") from error
                raise NatsUnavailable(f"cannot declare stream {stream.name}: {error}") from error
            checkpoint()

    async def _declare(self, config: StreamConfig, tries: int = 3) -> None:
        try:
            await self.js.add_stream(config)
        except nats.js.errors.BadRequestError:  # there, with other settings
            await self.js.update_stream(config)
        except nats.js.errors.ServerError:  # it may still be clearing away a deleted stream of this name
            if tries <= 1:
                raise
            await asyncio.sleep(DECLARE_AGAIN_S)
            await self._declare(config, tries - 1)

    async def latest(self, stream: str) -> list[tuple[str, bytes]]:
        """Return subject and data of the last message on each subject of a stream; raises `NatsUnavailable`."""
        found = []
        try:
            info = await self.js.stream_info(stream, subjects_filter=">")
            for subject in info.state.subjects or ():
                with contextlib.suppress(nats.js.errors.NotFoundError):  # it has lapsed meanwhile
                    message = await self.js.get_last_msg(stream, subject)
                    found.append((subject, message.data or b""))
        except (*AWAY, nats.errors.Error) as error:
            raise NatsUnavailable(f"cannot read the stream {stream}: {error!r}") from error
        checkpoint()
        return found


def event_headers(event: Event) -> dict[str, str]:
    """Return the CloudEvents attributes and the trace context of an event."""
    headers = {
        "ce-specversion": "1.0",
        "ce-id": event.id,
        "ce-type": event.type,
        "ce-source": event.source,
        "ce-time": event.model_dump(mode="json", include={"at"})["at"],
        "ce-subject": event.subject.rpartition(".")[2],
        "gurney-schema": SCHEMA,
    }
    if event.traceparent:
        headers["traceparent"] = event.traceparent
    return headers


def _trace_headers() -> dict[str, str]:
    parent = telemetry.traceparent()
    return {"traceparent": parent} if parent else {}


def check_node(question: Message, node: str) -> None:
    """Refuse what an agent may not ask: in another node's name, or for a client, without the token of a run."""
    fields = type(question).model_fields
    if "node" in fields and getattr(question, "node") != node:  # noqa: B009  # not every question has it
        raise Forbidden(f"node {node} asks in the name of another")
    if "token" in fields and (not getattr(question, "token") or getattr(question, "caller", None)):  # noqa: B009
        raise Forbidden(f"node {node} asks without the token of a run")
