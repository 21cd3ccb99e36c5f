"""Trying again, and tasks that nobody waits for."""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Generic, TypeVar

from gurney import clock, telemetry
from gurney.errors import GurneyError
from services.agent import policy

T = TypeVar("T")

_FIRST_S = 0.05
_LONGEST_S = 5.0

_log = telemetry.log("agent")


class GaveUp(Exception):
    """Patience is over; the message is the last fault."""


def delays() -> Iterator[float]:
    """Yield seconds to wait: doubling, with chance in them, at most some seconds."""
    for number in itertools.count():
        yield min(_LONGEST_S, _FIRST_S * 2 ** min(number, 10)) * random.uniform(0.5, 1.0)  # noqa: S311


async def persist(work: Callable[[], Awaitable[T]], patience_s: float) -> T:
    """Do the work, again and again for as long as that may help; raises `GaveUp`."""
    deadline: float | None = None
    for tries, delay in enumerate(delays(), 1):
        try:
            return await work()
        except (GurneyError, OSError) as error:
            now = clock.monotonic()
            deadline = now + patience_s if deadline is None else deadline
            if now >= deadline or not policy.is_worth_another_try(error, tries):
                raise GaveUp(str(error)) from error
            _log.info("tries again", tries=tries, error=type(error).__name__)
        await asyncio.sleep(delay)
    raise AssertionError


class Early(Generic[T]):
    """An answer that was asked for before it was needed; called again, it is asked for again."""

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._ask = ask
        self._first: asyncio.Task[T] | None = asyncio.create_task(ask())

    async def __call__(self) -> T:
        first, self._first = self._first, None
        return await (first or self._ask())

    def discard(self) -> None:
        """Break off what nobody has called for."""
        if self._first is not None:
            self._first.cancel()
            self._first.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._first = None


class Crew:
    """Tasks that nobody waits for; what fails in one is logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    async def dismiss(self, grace_s: float = 0.0) -> None:
        """Let the tasks end within the grace, then cancel what is left, and wait until all are gone."""
        if self._tasks and grace_s:
            await asyncio.wait(self._tasks, timeout=grace_s)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.error("task failed", task=task.get_name(), exc_info=error)
