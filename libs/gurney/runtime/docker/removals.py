"""Removes containers in the background, a few at a time: nobody waits for it but who takes the same name again."""

import asyncio

from gurney import telemetry
from gurney.errors import Unavailable
from gurney.runtime.docker.daemon import Daemon, Refused
from gurney.runtime.docker.house import name_of

#: At once: a removal costs the daemon as much as a start.
_WIDTH = 2
_AGAIN_S = 1.0
_ABSENT, _UNDER_WAY = 404, 409
_log = telemetry.log("agent")


class Removals:
    """What is being removed. What is left at the end is found at the next start, for it has no mark any more."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._lanes = asyncio.Semaphore(_WIDTH)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def soon(self, run_id: str) -> None:
        """Remove the container of a run that is forgotten."""
        self.remove(name_of(run_id))

    async def done(self, run_id: str) -> None:
        """Wait until the name is free."""
        if (task := self._tasks.get(name_of(run_id))) is not None:
            await asyncio.shield(task)

    @property
    def tasks(self) -> "list[asyncio.Task[None]]":
        return list(self._tasks.values())

    def remove(self, container: str) -> None:
        """Remove a container by id or name."""
        if container not in self._tasks:
            task = self._tasks[container] = asyncio.create_task(self._remove(container))
            task.add_done_callback(lambda _: self._tasks.pop(container, None))

    async def _remove(self, container: str) -> None:
        async with self._lanes:
            while True:
                try:
                    await self._daemon.slow(lambda client: client.remove_container(container, v=True, force=True))
                except Refused as error:
                    if error.http_status not in {_ABSENT, _UNDER_WAY}:
                        _log.warning("a container cannot be removed", container=container, error=error)
                    return
                except Unavailable:
                    await asyncio.sleep(_AGAIN_S)
                else:
                    return
