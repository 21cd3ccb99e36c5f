"""What one run says, on its way into the file of its log."""

import asyncio
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from gurney import telemetry
from gurney.errors import GurneyError
from gurney.runtime.docker.host import Host
from gurney.runtime.docker.logs import write_all

#: How long after a container's end its output may still be on the way.
_PATIENCE_S = 10.0
#: How the first process of a container says that it could not execute the application.
_NOT_EXECUTED = "[FATAL tini"
_TAIL = 2048

_log = telemetry.log("agent")


class Output:
    """The output of one run: followed from its beginning, or pieced together again where there was a gap."""

    def __init__(self, host: Host, run_id: str, container: str, followed: "Future[bool] | None" = None) -> None:
        """`followed`: it is being written since before the run began."""
        self._host = host
        self._run_id = run_id
        self._container = container
        self._path = host.records.log(run_id)
        self._followed = followed
        self.is_pieced = followed is None

    async def follow_again(self) -> None:
        """Follow what goes on: what was said before comes first, and the file begins anew."""
        if self._followed is not None and not self._followed.done():
            return
        self.is_pieced = True
        # In one go: a connection that nobody waits for any more would be closed by nobody.
        self._followed = await self._host.daemon.quick(lambda _: self._follow())

    async def finish(self) -> None:
        """Have all of it in the file, as far as that can be had."""
        if await self._is_whole():
            return
        try:
            await self._host.daemon.slow(lambda _: self._read_again())
        except GurneyError as error:
            _log.warning("a log may lack its end", run=self._run_id, error=error)

    async def not_executed(self) -> str:
        """Return what could not be executed, and why; empty where the application was."""
        line = await self._host.daemon.aside(lambda: _last_line(self._path))
        return line.partition("] ")[2] if line.startswith(_NOT_EXECUTED) else ""

    async def _is_whole(self) -> bool:
        if self._followed is None:
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                return await asyncio.wrap_future(self._followed) and not self.is_pieced
        return False

    def _follow(self) -> "Future[bool]":
        connection = self._host.daemon.attach(self._container, replay=True, follow=True)
        return self._host.pump.follow(connection, self._path)

    def _read_again(self) -> None:
        write_all(self._host.daemon.attach(self._container, replay=True, follow=False), self._path)


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""
