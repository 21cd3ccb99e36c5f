"""Tasks side by side, and cancellation that arrives.

Not `asyncio.TaskGroup`: that of Python 3.11 and 3.12 can leave the task whose group failed marked as cancelled.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


def checkpoint() -> None:
    """End a task that was asked to end, and whose cancellation a call into a library has lost; after such calls.

    `asyncio.wait_for` of Python 3.11 loses a cancellation that comes in the moment of its result.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class Together:
    """Tasks of one block: leaving it waits for them; the first fault ends the others and is raised as it is."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[Any]] = []

    def start(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start a task; raises the fault of one that has failed already."""
        failed = next((task for task in self._tasks if task.done() and not task.cancelled() and task.exception()), None)
        if failed is not None:
            work.close()
            failed.result()
        task = asyncio.create_task(work)
        self._tasks.append(task)
        return task

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)


async def spread(work: Callable[[T], Awaitable[None]], items: Sequence[T], width: int) -> None:
    """Do the work for each item, at most `width` at once; the first fault ends it all."""
    left = iter(items)

    async def lane() -> None:
        for item in left:
            await work(item)

    if len(items) <= 1:
        await lane()
        return
    async with Together() as tasks:
        for _ in range(min(width, len(items))):
            tasks.start(lane())
