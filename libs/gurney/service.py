"""The runner of every service: connect, declare, serve, consume, reconcile, drain.

What a service is made of stands in its `build`; when things happen stands here.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from gurney import telemetry
from gurney.bus import Answer, Bus
from gurney.consume import Handle, Puller
from gurney.documents.port import Collection, Documents
from gurney.errors import GurneyError
from gurney.outbox import Outbox
from gurney.settings import Settings
from gurney.store import Store
from gurney.streams import Consumer
from gurney.subjects import Operation

_log = telemetry.log("service")

#: Seconds between two looks at whether this service's streams are still there.
DECLARE_INTERVAL_S = 5.0


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
        self._wake = asyncio.Event()
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
        self._wake.set()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            if self._documents and self._collections:
                await self._documents.open(self._collections)
            await self.bus.connect()
            stack.push_async_callback(self.bus.close)
            await self.bus.declare()
            self.bus.on_reconnect.extend((self._reconnected.set, self.reconcile_soon))
            for resource in self._parts.resources:
                await stack.enter_async_context(resource)
            await self._start_tasks(stack)
            nats_service = await self.bus.serve(self._parts.answers)
            stack.push_async_callback(nats_service.stop)
            self.ready = True
            self._stack = stack.pop_all()
        _log.info("serving", service=self.name)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.ready = False
        await self._stack.aclose()
        _log.info("stopped", service=self.name)

    async def _start_tasks(self, stack: contextlib.AsyncExitStack) -> None:
        tasks: list[tuple[str, Awaitable[None]]] = [("declare", self._keep_declared())]
        if self._outbox:
            tasks.append(("outbox", self._outbox.run()))
        tasks += [(task.__name__, task()) for task in self._parts.tasks]
        for consumer, handle in self._parts.consumers.items():
            tasks.append((consumer.durable, Puller(self.bus, consumer, handle, self.reconcile_soon).run()))
        tasks.append(("reconcile", self._keep_reconciled()))
        running = [asyncio.create_task(self._guard(name, task), name=f"{self.name}:{name}") for name, task in tasks]
        stack.push_async_callback(_cancel, running)

    async def _guard(self, name: str, task: Awaitable[None]) -> None:
        try:
            await task
        except Exception:
            _log.exception("task ended", service=self.name, task=name)
            raise

    async def _keep_declared(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DECLARE_INTERVAL_S):
                    await self._reconnected.wait()
            self._reconnected.clear()
            with contextlib.suppress(GurneyError):
                await self.bus.declare()

    async def _keep_reconciled(self) -> None:
        while True:
            self._wake.clear()
            try:
                if self._outbox:
                    await self._outbox.sweep()
                if self._parts.reconcile:
                    await self._parts.reconcile()
            except Exception as error:
                _log.warning("reconciler will try again", service=self.name, error=repr(error))
                self._wake_later(1.0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.reconcile_interval):
                    await self._wake.wait()

    def _wake_later(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self._wake.set)


async def _cancel(tasks: Sequence["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
