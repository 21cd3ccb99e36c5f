"""Cancellation that arrives. `asyncio.wait_for` of Python 3.11 loses one that comes in the moment of its result."""

import asyncio


def checkpoint() -> None:
    """End a task that was asked to end, and whose cancellation a call into a library has lost; after such calls."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
