"""A TCP proxy that loses answers: the server did what it was asked, and the client never hears of it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

Between = Callable[[], Awaitable[object]]


class CuttingProxy:
    """Passes all messages on, until it is told which answer to lose."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._needle: bytes | None = None
        self._between: Between | None = None
        #: Answers that were lost.
        self.lost = 0

    @property
    def port(self) -> int:
        assert self._server
        return int(self._server.sockets[0].getsockname()[1])

    def lose_answer_to(self, needle: bytes, between: Between | None = None) -> None:
        """Lose the answer to the next question that holds these bytes; `between` runs before the client knows."""
        self._needle, self._between = needle, between

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        server_in, server_out = await asyncio.open_connection("127.0.0.1", self._to)
        loses = asyncio.Event()
        asking = asyncio.create_task(self._ask(client_in, server_out, loses))
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._answer(server_in, client_out, loses)
        finally:
            asking.cancel()
            client_out.close()
            server_out.close()

    async def _ask(self, client: asyncio.StreamReader, server: asyncio.StreamWriter, loses: asyncio.Event) -> None:
        try:
            while True:
                question = await _message(client)
                if self._needle and self._needle in question:
                    self._needle = None
                    loses.set()
                server.write(question)
        except (OSError, asyncio.IncompleteReadError):
            server.close()

    async def _answer(self, server: asyncio.StreamReader, client: asyncio.StreamWriter, loses: asyncio.Event) -> None:
        while True:
            answer = await _message(server)
            if loses.is_set():
                self.lost += 1
                if self._between:
                    await self._between()
                return
            client.write(answer)


async def _message(reader: asyncio.StreamReader) -> bytes:
    length = await reader.readexactly(4)
    return length + await reader.readexactly(int.from_bytes(length, "little") - 4)
