"""The server's end of the supervisor's socket: finds or starts the supervisor, asks, hears of ends, and tries again.

Everything that is asked for may be repeated, so a request whose answer was lost is simply sent again to the next
supervisor.
"""

import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gurney import clock
from gurney.errors import Unavailable
from gurney.runtime.supervisor import main as supervisor

_LONGEST_LINE = 1 << 28
_LONGEST_SUPERVISOR_LOG = 1 << 20
_SPAWN_S = 10.0
_AGAIN_S = 0.02
_BACK_OFF_S = 1.0


class _LostError(Exception):
    """The connection ended before the answer came."""


class SupervisorLink:
    """One connection, made anew whenever it breaks, for as long as the link is open."""

    def __init__(self, folder: Path, hear: Callable[[dict[str, Any]], None], *, idle_s: float, answer_s: float) -> None:
        self._folder = folder
        self._hear = hear
        self._idle_s = idle_s
        self._answer_s = answer_s
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._connected = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = True

    async def open(self) -> None:
        """Connect, starting the supervisor where none runs; raises `Unavailable`."""
        self._closed = False
        self._connected.clear()
        reader = await self._connect()
        self._task = asyncio.create_task(self._keep(reader))

    async def close(self) -> None:
        """Let go; whoever still waits for an answer gets `Unavailable`."""
        self._closed = True
        if self._task is None:
            return
        writer = self._writer
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._task = None
        self._connected.set()
        if writer is not None:
            with suppress(OSError):
                await writer.wait_closed()

    async def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Return the supervisor's answer, through as many supervisors as it takes; raises `Unavailable`."""
        try:
            async with asyncio.timeout(self._answer_s):
                while True:
                    await self._connected.wait()
                    if self._closed:
                        raise Unavailable("The runtime is closed")
                    with suppress(_LostError):
                        return await self._ask_once({"do": do, **fields})
        except TimeoutError:
            raise Unavailable("The supervisor of the runs does not answer") from None

    async def _ask_once(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._writer is not None  # noqa: S101  connected
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._writer.write(json.dumps({"id": number, **request}).encode() + b"\n")
            told = await answer
        finally:
            del self._waiting[number]
        if "error" in told:
            raise Unavailable(f"The supervisor of the runs refused: {told['error']}")
        return told

    async def _keep(self, reader: asyncio.StreamReader) -> None:
        """Read until the connection ends, connect again, and so on."""
        try:
            while True:
                await self._read(reader)
                self._disconnect()
                reader = await self._connect_again()
        finally:
            self._disconnect()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while line := await reader.readline():
                told = json.loads(line)
                if "id" not in told:
                    self._hear(told)
                elif (answer := self._waiting.get(told["id"])) and not answer.done():
                    answer.set_result(told)

    def _disconnect(self) -> None:
        self._connected.clear()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(_LostError())

    async def _connect_again(self) -> asyncio.StreamReader:
        while True:
            try:
                return await self._connect()
            except Unavailable:
                await asyncio.sleep(_BACK_OFF_S)

    async def _connect(self) -> asyncio.StreamReader:
        reaching = asyncio.ensure_future(asyncio.to_thread(self._reach))
        try:
            connection = await asyncio.shield(reaching)
        except asyncio.CancelledError:
            reaching.add_done_callback(_close_result)
            raise
        except OSError as error:
            raise Unavailable(f"The supervisor of the runs cannot be reached: {error}") from error
        reader, self._writer = await asyncio.open_unix_connection(sock=connection, limit=_LONGEST_LINE)
        self._connected.set()
        return reader

    # Blocking, in a thread

    def _reach(self) -> socket.socket:
        deadline = clock.monotonic() + _SPAWN_S
        while True:
            try:
                return self._dial()
            except (FileNotFoundError, ConnectionRefusedError):
                taken = self._spawn() == supervisor.TAKEN
            if clock.monotonic() > deadline:
                raise Unavailable("The supervisor of the runs cannot be reached")
            if taken:  # one is just coming or going
                time.sleep(_AGAIN_S)

    def _dial(self) -> socket.socket:
        # A socket's path is limited to about 107 bytes; through the folder's descriptor it is always short.
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(f"/proc/self/fd/{folder}/supervisor.sock")
            connection.settimeout(0)
        except OSError:
            connection.close()
            raise
        finally:
            os.close(folder)
        return connection

    def _spawn(self) -> int:
        log = self._folder / "supervisor.log"
        with suppress(FileNotFoundError):
            if log.stat().st_size > _LONGEST_SUPERVISOR_LOG:
                log.unlink()
        command = [sys.executable, "-I", "-S", supervisor.__file__, str(self._folder), str(self._idle_s)]
        with log.open("ab") as file:
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env={},
                    timeout=_SPAWN_S,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise Unavailable("The supervisor of the runs did not start in time") from error
        if done.returncode not in {0, supervisor.TAKEN}:
            raise Unavailable(f"The supervisor of the runs did not start: see {log}")
        return done.returncode


def _close_result(reaching: asyncio.Future[socket.socket]) -> None:
    if not reaching.cancelled() and reaching.exception() is None:
        reaching.result().close()
