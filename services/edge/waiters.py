"""Who waits for the end of a job: told by core NATS the moment that the job's owner says so."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Self

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from gurney.bus import Bus
from gurney.subjects import JOB_EVENT

#: After these there is nothing to wait for.
LAST_EVENTS = ("succeeded", "failed", "canceled", "deleted")


class Waiters:
    """One per edge, as a context: inside, it listens. A message may be lost: whoever waits looks himself at times."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._subscriptions: list[Subscription] = []

    async def __aenter__(self) -> Self:
        for event in LAST_EVENTS:
            subject = JOB_EVENT.of(event=event, job_id="*")
            self._subscriptions.append(await self._bus.subscribe(subject, self._on_event))
        return self

    async def __aexit__(self, *exc: object) -> None:
        for subscription in self._subscriptions:
            with contextlib.suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()

    @contextlib.contextmanager
    def watching(self, job_id: str) -> Iterator[asyncio.Event]:
        """Give an event that is set when the job ends. Enter before you read the job, so that no end is missed."""
        told = asyncio.Event()
        others = self._waiting.setdefault(job_id, set())
        others.add(told)
        try:
            yield told
        finally:
            others.discard(told)
            if not others and self._waiting.get(job_id) is others:
                del self._waiting[job_id]

    def wake_all(self) -> None:
        """Let everybody look, because the server stops."""
        for waiting in self._waiting.values():
            for told in waiting:
                told.set()

    async def _on_event(self, message: Msg) -> None:
        for told in self._waiting.get(message.subject.rpartition(".")[2], ()):
            told.set()
