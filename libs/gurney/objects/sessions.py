"""The HTTP connections that carry objects: one pool for each event loop, shared by all who move bytes in it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import aiohttp
from aiohttp.connector import AddrInfoType

#: Seconds for which an idle connection is kept; stores close theirs later.
KEEP_S = 15.0
#: Seconds after which a connection breaks whose other side takes nothing of what was sent.
DEAF_S = 60.0
_READ_AHEAD = 256 << 10
_UNASKED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


@dataclass
class _Pool:
    session: aiohttp.ClientSession
    users: int = 0


_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pool] = WeakKeyDictionary()


@asynccontextmanager
async def pooled() -> AsyncIterator[aiohttp.ClientSession]:
    """Keep connections open from call to call, as long as anybody is inside; who moves much stays inside."""
    loop = asyncio.get_running_loop()
    pool = _pools.get(loop)
    if pool is None:
        pool = _pools[loop] = _Pool(_session())
    pool.users += 1
    try:
        yield pool.session
    finally:
        pool.users -= 1
        if not pool.users:
            del _pools[loop]
            await pool.session.close()
            await asyncio.sleep(0)  # its sockets close in the loop's next round


def _socket(address: AddrInfoType) -> socket.socket:
    """Return a socket whose connection breaks where a store, or its host, does not take what was sent for too long."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(DEAF_S * 1000))
    return made


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_S, socket_factory=_socket),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=_READ_AHEAD,
        skip_auto_headers=_UNASKED,
    )
