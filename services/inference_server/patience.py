"""How long the façade waits for Gurney: clients stop for good on a 500, so what is away for a moment is waited for."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import stamina
from stamina.instrumentation import set_on_retry_hooks

from gurney.errors import Unavailable

#: Seconds for which a client's request is kept alive while a part of Gurney is away, and that one question may take.
PATIENCE_S, ASK_S = 60.0, 15.0

T = TypeVar("T")

set_on_retry_hooks(())  # each try is a request of Gurney's, whose log tells of it


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Return what `ask` returns, which may be asked again; raises `Unavailable` where it stays away."""
    async for attempt in stamina.retry_context(
        on=Unavailable, attempts=None, timeout=PATIENCE_S, wait_initial=0.05, wait_max=2.0, wait_jitter=0.1
    ):
        with attempt:
            return await ask()
    raise AssertionError("the last attempt raises")


async def promptly(ask: Awaitable[T]) -> T:
    """Return what is asked for; raises `Unavailable` where no answer comes in time."""
    try:
        async with asyncio.timeout(ASK_S):
            return await ask
    except TimeoutError:
        raise Unavailable(f"no answer after {ASK_S:g} s") from None
