"""The threads that move bytes: one pool for all transfers, so that a small file costs no thread of its own."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from threading import Event, Lock
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: More than cores: most of these threads wait for a disk. Threads are made when work comes.
POOL = ThreadPoolExecutor(32, thread_name_prefix="gurney-bytes")


async def hop(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in the pool and return what it returns."""
    return await asyncio.wrap_future(POOL.submit(work, *args, **kwargs))


async def hop_stoppable(work: Callable[[Event], T], pool: Executor = POOL) -> T:
    """Run `work` in a pool; cancelled, set the event and wait until `work` has ended: nothing races with it."""
    stop = Event()
    inner = pool.submit(work, stop)
    future = asyncio.wrap_future(inner)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop.set()
        inner.cancel()  # where it has not begun
        await asyncio.wait({future})
        raise


async def landed(future: Future[T]) -> T:
    """Wait for a job of a lane; a cancelled wait leaves the job in its place, for those behind it rely on it."""
    return await asyncio.shield(asyncio.wrap_future(future))


class Lane:
    """Runs jobs one after another in the order given, on the threads of the pool: a job may rely on those before it."""

    def __init__(self) -> None:
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._lock = Lock()
        self._busy = False

    def submit(self, job: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            self._jobs.append((future, job))
            start, self._busy = not self._busy, True
        if start:
            POOL.submit(self._drain)
        return future

    def _drain(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._busy = False
                    return
                future, job = self._jobs.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except BaseException as error:  # it belongs to whoever waits for the future
                future.set_exception(error)
            del future, job  # else the thread holds the job's bytes until the next one comes
