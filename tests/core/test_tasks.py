"""Tasks that are asked to end do end."""

import asyncio

import pytest

from gurney.tasks import Together, checkpoint


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


async def test_a_failed_group_leaves_its_task_free_to_go_on() -> None:
    """After a fault in `Together` the fault itself comes out, the others are ended, and a checkpoint lets pass."""
    ended = asyncio.Event()

    async def fail() -> None:
        raise ValueError("first")

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def both() -> None:
        async with Together() as tasks:
            tasks.start(endless())
            tasks.start(fail())

    with pytest.raises(ValueError, match="first"):
        await both()
    assert ended.is_set()
    checkpoint()
