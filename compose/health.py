# ruff: noqa: INP001  a script of its own
"""The image's health check: are the services of this container ready? It runs every few seconds and imports little."""

import os
import socket
import sys


def ready(port: int) -> bool:
    """Return whether `/readyz` says so."""
    with socket.create_connection(("127.0.0.1", port), 4) as connection:
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return b" 200 " in connection.recv(64)


if __name__ == "__main__":
    sys.exit(not ready(int(os.environ["GURNEY_METRICS_PORT"])))
