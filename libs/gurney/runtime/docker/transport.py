"""How the SDK reaches a daemon on a socket of this host: one pool of connections for all its addresses.

Its own adapter keeps a pool for each address, so that hardly a connection is used twice, and forgets to close a socket
that finds no daemon.
"""

import socket
from typing import Any

from docker.transport.unixconn import UnixHTTPAdapter, UnixHTTPConnection, UnixHTTPConnectionPool


class Connection(UnixHTTPConnection):
    """A connection that leaves nothing behind when there is nobody."""

    def connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(self.timeout)
            connection.connect(self.unix_socket)
        except BaseException:
            connection.close()
            raise
        self.sock = connection


class Pool(UnixHTTPConnectionPool):
    def _new_conn(self) -> Any:
        timeout: Any = self.timeout
        return Connection(self.base_url, self.socket_path, timeout)


class Adapter(UnixHTTPAdapter):
    """Keeps one pool, whatever is asked for."""

    def get_connection(self, url: Any, proxies: Any = None) -> Pool:
        del url, proxies
        with self.pools.lock:
            if not self.pools:
                self.pools["all"] = Pool("all", self.socket_path, self.timeout, maxsize=self.max_pool_size)
            return self.pools["all"]  # type: ignore[no-any-return]
