"""The blocking client, for scripts and notebooks: its own loop in its own thread, so it works inside a running loop."""

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from gurney.client.api import AsyncClient

T = TypeVar("T")


class _Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gurney-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        async def following() -> tuple[bool, T | None]:
            try:
                return True, await anext(items)
            except StopAsyncIteration:
                return False, None

        while True:
            more, item = self.run(following())
            if not more:
                return
            yield item  # type: ignore[misc]  # there is one when there are more

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Blocking:
    """An async object whose methods block and whose async iterators are iterators."""

    def __init__(self, wrapped: object, loop: _Loop) -> None:
        self._wrapped = wrapped
        self._loop = loop

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._wrapped, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            if inspect.iscoroutine(result):
                return self._loop.run(result)
            return self._loop.iterate(result) if hasattr(result, "__anext__") else result

        call.__doc__ = method.__doc__
        return call


class Client:
    """The same nouns and verbs as `AsyncClient`, blocking.

    >>> with Client("http://127.0.0.1:8350", token) as gurney:
    ...     job = gurney.jobs.wait(gurney.jobs.create(map="ct-body", payload="head")["id"])
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self._loop = _Loop()
        self._client = AsyncClient(url, token)
        self.maps = Blocking(self._client.maps, self._loop)
        self.payloads = Blocking(self._client.payloads, self._loop)
        self.jobs = Blocking(self._client.jobs, self._loop)
        self.runs = Blocking(self._client.runs, self._loop)
        self.handlers = Blocking(self._client.handlers, self._loop)
        self.nodes = Blocking(self._client.nodes, self._loop)
        self.tokens = Blocking(self._client.tokens, self._loop)
        self.events = Blocking(self._client.events, self._loop)

    def whoami(self) -> dict[str, Any]:
        return self._loop.run(self._client.whoami())

    def __enter__(self) -> Self:
        self._loop.run(self._client.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close connections and thread."""
        self._loop.run(self._client.__aexit__(None, None, None))
        self._loop.close()
