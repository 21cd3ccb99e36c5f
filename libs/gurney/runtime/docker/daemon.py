"""The way to the Docker daemon: its SDK blocks, so it is called on threads of our own; its errors become ours here.

`Refused` is an answer of the daemon that says no; `Unavailable` says that no answer came.
"""

import asyncio
import errno
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound

from gurney import clock
from gurney.errors import Internal, Unavailable
from gurney.runtime.docker.transport import Adapter
from gurney.runtime.docker.wire import address, dial, lines, read_head, url_or_default

T = TypeVar("T")

#: A busy daemon may take its time to start a container.
_ANSWER_S = 120
_ANY_VERSION = "1.41"
_PAST_S = 5.0
_LONGEST_EVENT = 1 << 20
_LINE = b"\r\n"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
#: Threads for what runs wait for, and for what takes long: pulls, readings, removals.
_QUICK, _SLOW = 16, 4


class Client(docker.APIClient):
    """The SDK's client, with a transport of our own and words of our own for what is typed nowhere."""

    def __init__(self, url: str, *, timeout_s: int = _ANSWER_S, connections: int = 4) -> None:
        """Ask the daemon for its version; raises `DockerException`."""
        # The version is asked for afterwards, through our own transport.
        super().__init__(base_url=url, version=_ANY_VERSION, timeout=timeout_s, max_pool_size=connections)
        if url.startswith("unix://"):
            self.mount("http+docker://", Adapter(url.replace("unix://", "http+unix://"), timeout_s, 1, connections))
        self._version = str(self.version(api_version=False)["ApiVersion"])

    def make(self, body: Mapping[str, Any], name: str) -> str:
        """Create a container; returns its id."""
        return str(self.create_container_from_config(body, name)["Id"])  # type: ignore[no-untyped-call]

    def image(self, name: str) -> dict[str, Any] | None:
        """Return what the daemon knows of an image that it has; None where it has it not."""
        try:
            found: dict[str, Any] = self.inspect_image(name)  # type: ignore[no-untyped-call]
        except ImageNotFound:
            return None
        return found


class Refused(Internal):
    """The daemon said no, with an HTTP status."""

    def __init__(self, http_status: int, message: str) -> None:
        super().__init__(one_line(message))
        self.http_status = http_status


def one_line(message: object) -> str:
    """Return the message without line breaks, and not endless."""
    return " ".join(str(message).split())[:1000]


class Daemon:
    """One daemon, through all its restarts. `connect` first; before, all else raises `Unavailable`."""

    def __init__(self, url: str | None = None) -> None:
        self.url = url_or_default(url)
        self.version: dict[str, Any] = {}
        self.info: dict[str, Any] = {}
        self._client: Client | None = None
        self._quick = ThreadPoolExecutor(_QUICK, thread_name_prefix="gurney-docker")
        self._slow = ThreadPoolExecutor(_SLOW, thread_name_prefix="gurney-docker-slow")

    async def connect(self) -> None:
        """Make the acquaintance of the daemon that is there now; raises `Unavailable`."""
        await asyncio.wrap_future(_submitted(self._slow, lambda: translated(self._connect)))

    def lost(self) -> None:
        """Note that the daemon has broken off: nobody tries it until there is one again."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def close(self) -> None:
        """Let go of threads and connections; what is under way may end."""
        for pool in (self._quick, self._slow):
            pool.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    async def quick(self, work: Callable[[Client], T]) -> T:
        """Run `work` with the client on a thread; raises `Refused` and `Unavailable`."""
        return await self._on(self._quick, work)

    async def slow(self, work: Callable[[Client], T]) -> T:
        """Do the same for what may take long and holds nobody up."""
        return await self._on(self._slow, work)

    async def aside(self, work: Callable[[], T]) -> T:
        """Run `work`, which needs no daemon, on a thread."""
        return await asyncio.wrap_future(_submitted(self._quick, work))

    async def _on(self, pool: ThreadPoolExecutor, work: Callable[[Client], T]) -> T:
        client = self._client
        if client is None:
            raise Unavailable(f"The Docker daemon at {self.url} does not answer")
        return await asyncio.wrap_future(_submitted(pool, lambda: translated(lambda: work(client))))

    def _connect(self) -> None:
        client = Client(self.url, connections=_QUICK + _SLOW)
        self.version, self.info = client.version(), client.info()
        self._client = client

    @asynccontextmanager
    async def events(self, label: str, actions: Sequence[str]) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Hear events of containers with the label, some of them past, until it breaks off; raises `Unavailable`."""
        filters = json.dumps({"type": ["container"], "label": [label], "event": list(actions)})
        # The daemon answers before it listens; what happens in between it tells only to those who ask for the past.
        since = int(clock.now().timestamp() - _PAST_S)
        path = f"/v{self.version['ApiVersion']}/events?since={since}&filters={quote(filters)}"
        try:
            reader, writer = await self._open()
        except OSError as error:
            raise Unavailable(f"The Docker daemon tells no events: {one_line(error)}") from error
        try:
            # To a client of HTTP 1.0 the daemon sends lines as they are.
            writer.write(f"GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
            status = (await _head(reader)).partition(_LINE)[0]
            if b" 200 " not in status:
                raise Unavailable(f"The Docker daemon tells no events: {one_line(status.decode())}")
            yield lines(reader)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(self.url)
        if parts.scheme == "unix":
            return await asyncio.open_unix_connection(parts.path, limit=_LONGEST_EVENT)
        host, port = address(self.url)
        return await asyncio.open_connection(host, port, limit=_LONGEST_EVENT)

    async def answers(self, within_s: float) -> bool:
        """Tell whether the daemon answers in time; without a thread, for all may wait for it."""
        try:
            async with asyncio.timeout(within_s):
                reader, writer = await self._open()
                try:
                    writer.write(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
                    return b" 200 " in (await _head(reader)).partition(_LINE)[0]
                finally:
                    writer.close()
        except (OSError, Unavailable):
            return False

    def attach(self, container: str, *, replay: bool, follow: bool) -> socket.socket:
        """Return a socket on which the output of a container arrives in frames, the past of it first if asked. Blocks.

        Not the SDK's: that one leaves in a buffer what came together with the headers.
        """
        connection = dial(self.url, _ANSWER_S)
        try:
            flags = f"stdout=1&stderr=1&logs={int(replay)}&stream={int(follow)}"
            connection.sendall(
                f"POST /v{self.version['ApiVersion']}/containers/{container}/attach?{flags} HTTP/1.1\r\n"
                "Host: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n".encode()
            )
            head = read_head(connection)
            status = int(head.split(b" ", 2)[1])
            if status not in {101, 200}:
                raise Refused(status, f"the output of {container} cannot be had")
            connection.settimeout(None)
        except BaseException:
            connection.close()
            raise
        return connection


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(_LINE * 2)
    except (OSError, EOFError, ValueError) as error:
        raise Unavailable(f"The Docker daemon tells no events: {one_line(error)}") from error


def _submitted(pool: ThreadPoolExecutor, work: Callable[[], T]) -> "Future[T]":
    try:
        return pool.submit(work)
    except RuntimeError as error:  # the pools are closed
        raise Unavailable("The runtime is closed") from error


def translated(work: Callable[[], T]) -> T:
    """Run `work` with the errors of driver and sockets put into ours."""
    try:
        return work()
    except APIError as error:
        status = error.status_code or 500
        raise Refused(int(status), error.explanation or str(error)) from error
    except (DockerException, requests.RequestException, OSError) as error:
        if isinstance(error, OSError) and error.errno in _FULL:  # records of ours, which go with a call
            raise Unavailable(f"There is no room on the disk: {error.strerror}") from error
        raise Unavailable(f"The Docker daemon does not answer: {one_line(error)}") from error
