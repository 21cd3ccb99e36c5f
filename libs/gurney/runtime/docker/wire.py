"""The daemon's socket, without the SDK: whether it answers, and streams that the SDK would read badly."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

DEFAULT_URL = "unix:///var/run/docker.sock"
_PORT = 2375
_HEADER_LIMIT = 64 * 1024


def url_or_default(url: str | None) -> str:
    """Return where the daemon is, by the setting, by `DOCKER_HOST`, or where it always is."""
    return url or os.environ.get("DOCKER_HOST") or DEFAULT_URL


def dial(url: str, timeout_s: float) -> socket.socket:
    """Return a fresh connection to the daemon; OSError where there is none."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout_s)
        try:
            connection.connect(parts.path)
        except BaseException:
            connection.close()
            raise
        return connection
    return socket.create_connection(address(url), timeout_s)


def address(url: str) -> tuple[str, int]:
    """Return host and port of a URL."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or _PORT


async def lines(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON of each line, until the end; a line that is cut off is the end."""
    with suppress(OSError, ValueError):
        while line := await reader.readline():
            yield json.loads(line)


def answers(url: str, timeout_s: float = 1.0) -> bool:
    """Tell whether a daemon answers there, soon. Blocks."""
    try:
        with dial(url, timeout_s) as connection:
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except (OSError, ValueError):
        return False


def read_head(connection: socket.socket) -> bytes:
    """Read the answer's head and not a byte of what follows it."""
    head = b""
    while len(head) < _HEADER_LIMIT:
        seen = connection.recv(_HEADER_LIMIT, socket.MSG_PEEK)
        if not seen:
            raise ConnectionError("the daemon broke off")
        end = (head + seen).find(b"\r\n\r\n")
        head += connection.recv(len(seen) if end < 0 else end + 4 - len(head))
        if end >= 0:
            return head
    raise ConnectionError("the daemon's answer has no end")
