"""The runner of every service: connect, declare, serve, consume, reconcile, drain.

What a service is made of stands in its `build`; when things happen stands here.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

from gurney import telemetry
from gurney.bus import Answer, Bus
from gurney.clock import monotonic
from gurney.consume import Handle, Puller
from gurney.documents.port import Collection, Documents, Query
from gurney.errors import GurneyError, NatsUnavailable, Unavailable
from gurney.model.common import Empty, Health
from gurney.outbox import Outbox
from gurney.settings import Settings
from gurney.store import Store
from gurney.streams import Consumer
from gurney.subjects import HEALTH, Operation
from gurney.watch import ANSWERS_WITHIN_S, Checks, checked

_log = telemetry.log("service")

Task = Callable[[], Awaitable[None]]

#: Seconds between two looks at whether this service's streams are still there.
DECLARE_INTERVAL_S = 5.0
#: Seconds in which those start whom a reconciler asks.
OTHERS_START_S = 15.0
#: Seconds until a task that failed begins again: at first, and at most.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


@dataclass
class Parts:
    """What a service does, by the message that makes it do it."""

    answers: Mapping[Operation[Any, Any], Answer] = field(default_factory=dict)
    consumers: Mapping[Consumer, Handle] = field(default_factory=dict)
    #: Makes up what is missing: at start, on a new stream or reconnect, and every 30 s.
    reconcile: Callable[[], Awaitable[None]] | None = None
    #: Run as long as the service does.
    tasks: Sequence[Callable[[], Awaitable[None]]] = ()
    #: Entered after the connection stands, left before it goes.
    resources: Sequence[contextlib.AbstractAsyncContextManager[Any]] = ()
    #: What the service stands on beside NATS and documents: each raises where it is away.
    checks: Checks = field(default_factory=dict)


class Service:
    """A service as a context: inside, it serves."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        documents: Documents | None = None,
        collections: Sequence[Collection[Any]] = (),
    ) -> None:
        self.name = name
        self.settings = settings
        self.bus = Bus(settings, name)
        self._documents = documents
        self._collections = tuple(collections)
        self._outbox = Outbox(self.bus, documents, self._collections) if documents and collections else None
        #: One for each reconciler that runs.
        self._wakes: set[asyncio.Event] = set()
        self._reconnected = asyncio.Event()
        self._stack = contextlib.AsyncExitStack()
        self._parts = Parts()
        self.ready = False

    @property
    def store(self) -> Store:
        """What an owner writes with."""
        if self._documents is None or self._outbox is None:
            raise RuntimeError(f"{self.name} owns no documents")
        return Store(self._documents, self._outbox)

    def does(self, parts: Parts) -> Self:
        """Say what the service does; once, before it is entered."""
        self._parts = parts
        return self

    def reconcile_soon(self) -> None:
        """Ask for a round of the reconciler now."""
        for wake in self._wakes:
            wake.set()

    def publish_left(self) -> None:
        """Publish now what lies unpublished in the documents: another process may have left it."""
        if self._outbox:
            self._outbox.catch_up_soon()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            if self._documents and self._collections:
                await self._documents.open(self._collections)
            await self.bus.connect()
            stack.push_async_callback(self.bus.close)
            await self.bus.declare()
            self.bus.on_reconnect.extend((self._reconnected.set, self.reconcile_soon))
            self._run(stack, [("declare", self._keep_declared)])
            if self._outbox:
                stack.push_async_callback(self._outbox.finish)
                self._run(stack, [("outbox", self._outbox.run), ("sweep", self._outbox.sweep)])
            await stack.enter_async_context(self.serving(self._parts))
            await stack.enter_async_context(self.answering(self._parts.answers))
            self.ready = True
            self._stack = stack.pop_all()
        _log.info("serving", service=self.name)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.ready = False
        await self._stack.aclose()
        _log.info("stopped", service=self.name)

    @contextlib.asynccontextmanager
    async def serving(self, parts: Parts) -> AsyncIterator[None]:
        """Do these parts, but for their answers, for as long as the context is open."""
        async with contextlib.AsyncExitStack() as stack:
            for resource in parts.resources:
                await stack.enter_async_context(resource)
            tasks: list[tuple[str, Task]] = [(task.__name__, task) for task in parts.tasks]
            pullers: list[tuple[str, Task]] = [
                (consumer.durable, Puller(self.bus, consumer, handle, self.reconcile_soon).run)
                for consumer, handle in parts.consumers.items()
            ]
            tasks.append(("reconcile", partial(self._keep_reconciled, parts)))
            self._run(stack, tasks)
            self._run(stack, pullers)  # what they have begun needs the tasks
            yield

    @contextlib.asynccontextmanager
    async def answering(
        self, answers: Mapping[Operation[Any, Any], Answer], group: str | None = None
    ) -> AsyncIterator[None]:
        """Answer questions for as long as the context is open; each goes to one of a queue `group`.

        Leaving it takes no more, and waits for the answers that were begun.
        """
        nats_service = await self.bus.serve(self._with_health(answers), group)
        try:
            yield
        finally:
            if nats_service:
                await nats_service.stop()
            await self.bus.drained()

    def _with_health(self, answers: Mapping[Operation[Any, Any], Answer]) -> Mapping[Operation[Any, Any], Answer]:
        async def health(_: Empty) -> Health:
            return await self.health()

        known = answers and self._collections and HEALTH.get(self.name)
        return {**answers, known: health} if known else answers

    async def health(self) -> Health:
        """Tell which of the parts that this service stands on are there."""
        checks: dict[str, Callable[[], Awaitable[object]]] = {"nats": self._nats_answers}
        if self._documents and self._collections:
            checks["documents"] = partial(self._documents.find, self._collections[0], Query(sort=("id",), limit=1))
        checks |= self._parts.checks
        return await checked(checks)

    async def _nats_answers(self) -> None:
        if not await self.bus.answers(ANSWERS_WITHIN_S):
            raise NatsUnavailable

    def _run(self, stack: contextlib.AsyncExitStack, tasks: Sequence[tuple[str, Task]]) -> None:
        """Run tasks until the stack is left."""
        running = [asyncio.create_task(self._guard(name, task), name=f"{self.name}:{name}") for name, task in tasks]
        stack.push_async_callback(_cancel, running)

    async def _guard(self, name: str, task: Task) -> None:
        """Run a task; one that fails begins again. Without it the service would answer, and do its work no more."""
        pause = FIRST_PAUSE_S
        while True:
            began = monotonic()
            try:
                await task()
            except Exception:
                _log.exception("task failed and begins again", service=self.name, task=name)
            else:
                return
            if monotonic() - began > LONGEST_PAUSE_S:
                pause = FIRST_PAUSE_S
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE_S, 2 * pause)

    async def _keep_declared(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DECLARE_INTERVAL_S):
                    await self._reconnected.wait()
            self._reconnected.clear()
            with contextlib.suppress(GurneyError):
                await self.bus.declare()

    async def _keep_reconciled(self, parts: Parts) -> None:
        wake = asyncio.Event()
        self._wakes.add(wake)
        quiet_until = monotonic() + OTHERS_START_S
        told: type[Exception] | None = None
        try:
            while True:
                wake.clear()
                try:
                    if parts.reconcile:
                        await parts.reconcile()
                    told = None
                except Exception as error:
                    starting = isinstance(error, Unavailable) and monotonic() < quiet_until
                    # It tries each second, for as long as what it needs is away: a weekend, too.
                    tell = _log.debug if starting or told is type(error) else _log.warning
                    told = told if starting else type(error)
                    tell("reconciler will try again", service=self.name, error=error)
                    asyncio.get_running_loop().call_later(1.0, wake.set)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.settings.reconcile_interval):
                        await wake.wait()
        finally:
            self._wakes.discard(wake)


async def _cancel(tasks: Sequence["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
