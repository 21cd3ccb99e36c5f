"""Tasks that are asked to end do end."""

import asyncio

import pytest

from gurney.tasks import checkpoint


async def test_a_cancellation_that_a_library_lost_is_found() -> None:
    """A task whose cancellation was swallowed ends at its next checkpoint."""
    begun, reached = asyncio.Event(), []

    async def work() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            reached.append("swallowed")
        checkpoint()
        reached.append("went on")

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reached == ["swallowed"]


async def test_nobody_else_notices() -> None:
    """A task that nobody asked to end passes every checkpoint."""
    checkpoint()
