"""File descriptors and what to call when they are ready."""

from __future__ import annotations

import math
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ = select.POLLIN
READ_WRITE = select.POLLIN | select.POLLOUT


class Poller:
    def __init__(self) -> None:
        self._poll = select.poll()
        self._calls: dict[int, Callable[[int], None]] = {}

    def watch(self, fd: int, call: Callable[[int], None]) -> None:
        self._calls[fd] = call
        self._poll.register(fd, READ)

    def change(self, fd: int, events: int) -> None:
        self._poll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        del self._calls[fd]
        self._poll.unregister(fd)

    def turn(self, timeout_s: float | None) -> None:
        """Wait until something is ready or the time is over, and call what is ready."""
        wait = None if timeout_s is None else min(60_000, max(0, math.ceil(timeout_s * 1000)))
        for fd, events in self._poll.poll(wait):
            if call := self._calls.get(fd):
                call(events)
